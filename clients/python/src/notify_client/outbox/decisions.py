"""Decide what follows from an attempt to send a row. Nothing here does any I/O or looks at a clock."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from notify_client.errors import (
    ApiError,
    AuthenticationFailed,
    ConnectionFailed,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    NotifyError,
    PermissionDenied,
    RateLimited,
)

KEY_LIFETIME = timedelta(hours=24)
MARGIN = timedelta(hours=1)
WINDOW = KEY_LIFETIME - MARGIN
"""For this long after its first attempt, a row may be sent again: the gateway still knows its idempotency key."""
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(minutes=5)
LONGEST_ERROR = 1000  # characters

REFUSED = {"invalid_request", "idempotency_key_reused", "bad_request", "body_too_large"}
REFUSED_STATUSES = {413, 422}
NOT_EXECUTED_STATUSES = {405, 408, 421, 431}
NOT_EXECUTED = (AuthenticationFailed, PermissionDenied, NotFound, RateLimited)
TOO_OLD = (
    f"The first attempt was more than {WINDOW.total_seconds() / 3600:g} hours ago. The gateway may have accepted it "
    "and may no longer know its idempotency key, so that sending it again could create a second notification."
)


class Verdict(Enum):
    """The result of an attempt."""

    SENT = "sent"
    """The gateway has stored the notification."""
    REFUSED = "refused"
    """The gateway will never accept this request."""
    NOT_EXECUTED = "not executed"
    """The gateway has certainly not stored the notification."""
    UNREACHABLE = "unreachable"
    """The gateway could not be reached, so it has stored nothing, and the row is not to blame."""
    UNKNOWN = "unknown"
    """The gateway may have stored the notification."""
    UNTRIED = "untried"
    """There was no attempt."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt."""

    verdict: Verdict
    error: str | None = None
    retry_after: float | None = None
    maybe_executed: bool = False
    """True unless this attempt has certainly created no notification."""

    @property
    def is_final(self) -> bool:
        """True if the row is not sent again. The gateway works, then."""
        return self.verdict in {Verdict.SENT, Verdict.REFUSED}


SENT, UNTRIED = Outcome(Verdict.SENT, maybe_executed=True), Outcome(Verdict.UNTRIED)


def outcome_of(error: NotifyError) -> Outcome:
    """Return what a failed attempt means."""
    text = f"{type(error).__name__}: {error}".replace("\x00", "")[:LONGEST_ERROR]  # PostgreSQL cannot store NUL
    if isinstance(error, ConnectionFailed) and not error.maybe_executed:
        return Outcome(Verdict.UNREACHABLE, text)
    if not isinstance(error, ApiError):
        return Outcome(Verdict.UNKNOWN, text, maybe_executed=True)
    if error.code in REFUSED or error.status in REFUSED_STATUSES:
        fields = [f"{each.field}: {each.detail}" for each in error.errors if each.detail not in error.detail]
        # If the key was used with another body, something was executed.
        maybe_executed = isinstance(error, IdempotencyKeyReused)
        return Outcome(Verdict.REFUSED, "; ".join([text, *fields])[:LONGEST_ERROR], maybe_executed=maybe_executed)
    # Other errors of the class InvalidRequest, such as `foreign_host`, are not the row's fault.
    if isinstance(error, (*NOT_EXECUTED, InvalidRequest)) or error.status in NOT_EXECUTED_STATUSES:
        return Outcome(Verdict.NOT_EXECUTED, text, error.retry_after)
    return Outcome(Verdict.UNKNOWN, text, error.retry_after, maybe_executed=True)


def is_too_old(first_attempt_at: datetime | None, now: datetime) -> bool:
    """Return whether sending the row again could create a second notification.

    A row that was never attempted may be sent, whatever its age.
    """
    return first_attempt_at is not None and now - first_attempt_at >= WINDOW


def row_backoff(attempts: int) -> timedelta:
    """Return how long a row waits after this number of attempts, so that others are sent in the meantime."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * (1 << min(max(attempts - 1, 0), 20)))
