"""The gateway's errors, which `http/problems.py` turns into responses."""

from collections.abc import Mapping, Sequence


class RequestRejected(Exception):
    """The request is well-formed, but cannot be accepted now or with these settings. The text is `field: reason`."""


class IdempotencyKeyReused(Exception):
    """The idempotency key has already been used with a different body."""


PARTLY_CANCELLED = "Some deliveries had already started or finished; the others were cancelled."


class CancellationRejected(Exception):
    """Some of the notification's deliveries are in progress or final. `deliveries` lists every delivery, as JSON."""

    def __init__(self, deliveries: Sequence[Mapping[str, object]], detail: str = PARTLY_CANCELLED) -> None:
        super().__init__(detail)
        self.deliveries = deliveries


class RetryRejected(Exception):
    """The delivery cannot be retried. The text says why."""


class TooManyRetryJobs(Exception):
    """The tenant has too many unfinished retry jobs. The text says how many."""


class TooManySubscribers(Exception):
    """This gateway cannot take another event subscriber, or is about to stop."""


class TooManyInProgress(Exception):
    """Too many reads and writes of one tenant are in progress."""


class ReadTimedOut(Exception):
    """A read exceeded the time limit for reads."""


class TooManyMissed(Exception):
    """A subscriber missed more changes than can be replayed."""


class ClientDisconnected(Exception):
    """The client closed the connection before it sent the whole request."""
