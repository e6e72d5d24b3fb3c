"""The errors that `notify_common` raises; provider errors are in `sending/errors.py`."""


class StartupError(Exception):
    """The process cannot run in this environment. The message tells the operator what to change."""


class BrokerUnavailable(Exception):
    """RabbitMQ is unavailable. Anything that was being sent may or may not have reached it."""


class PublishFailed(Exception):
    """The broker did not confirm the message, but may have received it."""


class PublishRefused(PublishFailed):
    """The broker refused the message, because its queue is full or missing. The message may be published again."""


class NotConfirmed(PublishFailed):
    """The broker has not confirmed the message for minutes, because its queue has no majority, but may still do so."""


class PublishImpossible(PublishFailed):
    """The broker does not accept the message, or another one that was published on the same channel."""


class NotWritten(PublishFailed):
    """The message was not written to the connection, because its publisher no longer allowed it."""


class PoisonMessage(Exception):
    """The message can never be handled and must be dead-lettered. The error text says why."""


class Overloaded(Exception):
    """Too many items are waiting already."""
