"""The errors of the gateway, which `http/problems.py` turns into responses."""

from collections.abc import Sequence

from pydantic import BaseModel


class RequestRejected(Exception):
    """The request is well-formed, but cannot be accepted now or with these settings. The message is `field: reason`."""


class IdempotencyKeyReused(Exception):
    """The idempotency key was used with a different body."""


class CancellationRejected(Exception):
    """Some deliveries of the notification are in progress or final. `deliveries` lists all its deliveries."""

    def __init__(self, deliveries: Sequence[BaseModel]) -> None:
        super().__init__()
        self.deliveries = deliveries


class TooManySubscribers(Exception):
    """This gateway has no room for another event subscriber, or is about to stop."""


class TooManyMissed(Exception):
    """A subscriber missed more changes than can be replayed one by one."""


class ClientDisconnected(Exception):
    """The client closed the connection before it sent the whole request."""
