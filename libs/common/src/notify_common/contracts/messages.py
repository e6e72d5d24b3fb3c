"""The messages that the services exchange over RabbitMQ: frozen, versioned JSON.

New fields need defaults, and existing fields are never renamed or reused. Golden files in the tests enforce this.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, FailFast, Field, StringConstraints
from pydantic_core import from_json

from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import EPOCH
from notify_common.contracts.trace_context import TRACEPARENT_HEADER
from notify_common.contracts.users import user_of

# PostgreSQL stores the counters as 32-bit integers, and its text values cannot contain NUL.
LARGEST_COUNTER = 2**31 - 1
Counter = Annotated[int, Field(ge=0, le=LARGEST_COUNTER)]
Ordinal = Annotated[int, Field(ge=1, le=LARGEST_COUNTER)]
SHORT_TEXT_LENGTH = 500
ShortText = Annotated[str, StringConstraints(max_length=SHORT_TEXT_LENGTH, pattern=r"^[^\x00]*$")]
# Python and the database driver can convert such a time to every time zone. `expires_at` may be the latest one.
LATEST_TIME = datetime(9000, 1, 1, tzinfo=UTC)
Time = Annotated[AwareDatetime, Field(ge=EPOCH, le=LATEST_TIME)]

# Parsing and validating a body in one step is twice as fast as in two. However, each error then copies the whole body,
# and there may be one for each field that is missing, so longer bodies are parsed first.
MAX_ONE_STEP_BYTES = 128 * 1024
# Longer bodies are not parsed at all, because a parsed message takes many times the memory of its body.
MAX_REQUEST_BYTES = 512 * 1024  # the gateway accepts bodies of 256 KiB
MAX_RESULTS = 200
MAX_RESULTS_BYTES = 1024 * 1024  # with the longest error texts, the senders' largest message has 0.8 MiB
MAX_CHANGES = 500  # a bulk retry publishes thousands at once
MAX_CHANGES_BYTES = 2 * 1024 * 1024  # with the longest error codes, the largest message has 1.6 MiB

# AMQP headers, which identify a message even if its body cannot be read.
DELIVERY_ID_HEADER = "delivery_id"
NOTIFICATION_ID_HEADER = "notification_id"
ROUND_HEADER = "round"


def incremented(counter: int) -> int:
    """Return `counter` plus one, but at most the largest counter: a message with a larger one is unreadable."""
    return min(counter + 1, LARGEST_COUNTER)


class DeliveryStatus(StrEnum):
    """A delivery's status. The last four values are final."""

    PENDING = "pending"
    RETRYING = "retrying"
    SENT = "sent"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True if no further attempt follows, unless an operator retries the delivery."""
        return self not in {DeliveryStatus.PENDING, DeliveryStatus.RETRYING}


class Outcome(StrEnum):
    """How an attempt ended. `expired` means that the delivery expired before it could be attempted."""

    SENT = "sent"
    RETRYING = "retrying"
    THROTTLED = "throttled"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def status(self) -> DeliveryStatus:
        """The delivery status that follows from this outcome."""
        return DeliveryStatus.RETRYING if self is Outcome.THROTTLED else DeliveryStatus(self.value)


class ErrorClass(StrEnum):
    """What an error means for the delivery, independent of the provider's own error codes."""

    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    THROTTLED = "throttled"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"
    """The connection broke after the request was sent, so the provider may or may not have delivered the message."""
    POISON = "poison"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Return the message with this body; raise a `ValueError`, usually a `ValidationError`, if it is unreadable."""
        if len(body) <= MAX_ONE_STEP_BYTES:
            return cls.model_validate_json(body)
        return cls.model_validate(from_json(body))


class EmailContent(_Frozen):
    """The parts of a notification that only e-mails have."""

    html: str | None = None
    """The message as HTML."""
    reply_to: str | None = None
    list_unsubscribe: str | None = None
    """A URL that unsubscribes the recipient with a single POST (RFC 8058)."""


class Content(_Frozen):
    """The content that the user sees."""

    message: str
    subject: str | None = None
    email: EmailContent | None = None
    """Set only on the e-mail channel."""


class DeliveryRequested(_Frozen):
    """A request for one delivery attempt. Senders request retries, and the gateway requests all other attempts."""

    version: Literal[1] = 1
    delivery_id: UUID
    notification_id: UUID
    tenant: str | None = None
    """The owner of the notification; None in messages of older versions."""
    user_id: int
    """The user's id if it is an integer, otherwise 0."""
    user_key: str | None = None
    """The user's id if it is not an integer."""
    channel: Channel
    recipient: str | None = None
    """The address to send to. It is None in the message of a test delivery, so that a sender of a version that does not
    know `test` sends nothing."""
    content: Content
    round: Ordinal = 1
    """An operator's retry of a failed delivery starts the next round, with a new retry budget."""
    attempt: Ordinal = 1
    """The number of this attempt, counted across all rounds."""
    failures: Counter = 0
    """The number of failures in this round before this attempt."""
    not_before: Time | None = None
    expires_at: Time | None = None
    waiting_since: Time | None = None
    """When the provider started to throttle us or became unreachable; None if it did neither."""
    reserved: bool = False
    """True if a sender has reserved a turn under a rate limit for this attempt, at `not_before` or earlier."""
    test: bool = False
    """True if a test key posted the notification, so that every attempt is only simulated."""
    test_recipient: str | None = None
    """The recipient of a test delivery, in its message."""
    traceparent: str | None = Field(None, exclude=True)
    """The parent span. It is sent in a header, not in the body."""

    @property
    def user(self) -> str:
        """The user's id."""
        return user_of(self.user_id, self.user_key)

    def body(self) -> bytes:
        """Return the JSON of the message."""
        request = self
        if self.test and self.recipient is not None:
            request = self.model_copy(update={"recipient": None, "test_recipient": self.recipient})
        return request.model_dump_json().encode()

    def headers(self) -> dict[str, Any]:
        """Return the AMQP headers, as a new dict."""
        headers: dict[str, Any] = {
            DELIVERY_ID_HEADER: str(self.delivery_id),
            NOTIFICATION_ID_HEADER: str(self.notification_id),
            ROUND_HEADER: self.round,
        }
        if self.traceparent is not None:
            headers[TRACEPARENT_HEADER] = self.traceparent
        return headers


class DeliveryResult(_Frozen):
    """The result of one attempt. If its outcome is `expired`, no attempt was made."""

    delivery_id: UUID
    round: Ordinal
    attempt: Counter
    """The number of provider calls so far, including this one."""
    failures: Counter
    """The number of failures in this round, including this attempt."""
    outcome: Outcome
    error_class: ErrorClass | None = None
    error_code: ShortText | None = None
    error_text: ShortText | None = None
    provider_message_id: ShortText | None = None
    started_at: Time
    finished_at: Time
    next_attempt_at: Time | None = None
    traceparent: ShortText | None = None
    """The attempt's span."""


class DeliveryResults(_Frozen):
    """Results from one sender, in the order in which they occurred."""

    version: Literal[1] = 1
    results: Annotated[tuple[DeliveryResult, ...], Field(max_length=MAX_RESULTS), FailFast()]


class ResultsEnvelope(_Frozen):
    """`DeliveryResults` with unparsed items, so that one bad item does not affect the others."""

    version: Literal[1]
    results: Annotated[tuple[Any, ...], Field(max_length=MAX_RESULTS)]


class StatusChange(_Frozen):
    """A change to a delivery: a new status, or a further attempt."""

    delivery_id: UUID
    notification_id: UUID
    channel: Channel
    status: DeliveryStatus
    round: Ordinal
    attempt: Counter
    changed_at: Time
    """The time according to PostgreSQL's clock."""
    error_class: ErrorClass | None = None
    error_code: ShortText | None = None


class StatusChanges(_Frozen):
    """Status changes that were committed together and have the same channel and status.

    An empty list means that some changes were dropped because RabbitMQ did not accept them.
    """

    version: Literal[1] = 1
    changes: Annotated[tuple[StatusChange, ...], Field(max_length=MAX_CHANGES), FailFast()]
