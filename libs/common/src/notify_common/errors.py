"""The errors of `notify_common`; those of providers are in `sending/errors.py`."""


class StartupError(Exception):
    """The process cannot run in this environment. The message says what the operator has to change."""


class BrokerUnavailable(Exception):
    """RabbitMQ cannot be used now. What was being sent may or may not have reached it."""


class PublishFailed(Exception):
    """The broker did not confirm the message. It may or may not have received it."""


class PoisonMessage(Exception):
    """The message can never be handled and must be dead-lettered. The text says why."""


class Overloaded(Exception):
    """Too many items are waiting already."""
