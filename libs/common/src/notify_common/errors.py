"""The errors of `notify_common`; those of providers are in `sending/errors.py`."""


class StartupError(Exception):
    """The process can not run as it is set up. The message tells the operator what to change."""


class BrokerUnavailable(Exception):
    """RabbitMQ is away, going away or refusing: what was under way may or may not have reached it."""


class PublishFailed(Exception):
    """The broker did not confirm the message: it may or may not have it."""


class PoisonMessage(Exception):
    """The message can never be handled: it belongs in the dead letters. The text says why."""


class Overloaded(Exception):
    """Too many items wait for their commit already."""
