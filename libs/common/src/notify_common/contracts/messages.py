"""The messages that cross RabbitMQ: frozen, versioned JSON.

Fields are added with defaults, never renamed or reused; `tests/unit/golden/` guards it.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from notify_common.contracts.channels import Channel
from notify_common.contracts.trace_context import TRACEPARENT_HEADER

# PostgreSQL stores counters as 32-bit integers and no NUL in a text.
Counter = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ordinal = Annotated[int, Field(ge=1, le=2**31 - 1)]
SHORT_TEXT_LENGTH = 500
ShortText = Annotated[str, StringConstraints(max_length=SHORT_TEXT_LENGTH, pattern=r"^[^\x00]*$")]

# AMQP headers: a message whose body can not be read can still be told apart by them.
DELIVERY_ID_HEADER = "delivery_id"
NOTIFICATION_ID_HEADER = "notification_id"
ROUND_HEADER = "round"


class DeliveryStatus(StrEnum):
    """Where a delivery is. The last four are final."""

    PENDING = "pending"
    RETRYING = "retrying"
    SENT = "sent"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self not in {DeliveryStatus.PENDING, DeliveryStatus.RETRYING}


class Outcome(StrEnum):
    """How an attempt ended. `expired` is the end of a delivery that came too late to be attempted."""

    SENT = "sent"
    RETRYING = "retrying"
    THROTTLED = "throttled"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def status(self) -> DeliveryStatus:
        """What the delivery becomes by it."""
        return DeliveryStatus.RETRYING if self is Outcome.THROTTLED else DeliveryStatus(self.value)


class ErrorClass(StrEnum):
    """Why an attempt did not send: what the error means for the delivery, not what a provider calls it."""

    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    THROTTLED = "throttled"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"
    """The connection broke after the request was sent: the provider may have sent it or not."""
    POISON = "poison"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class EmailContent(_Frozen):
    """What an e-mail has besides."""

    html: str | None = None
    """The message once more, for programs that show HTML."""
    reply_to: str | None = None
    list_unsubscribe: str | None = None
    """Where one POST unsubscribes (RFC 8058)."""


class Content(_Frozen):
    """What the user is to read."""

    message: str
    subject: str | None = None
    email: EmailContent | None = None
    """Only where the channel is email."""


class DeliveryRequested(_Frozen):
    """One attempt at a delivery is wanted: gateway to sender, and sender to itself for the next attempt."""

    version: Literal[1] = 1
    delivery_id: UUID
    notification_id: UUID
    user_id: int
    channel: Channel
    recipient: str | None = None
    content: Content
    round: Ordinal = 1
    attempt: Ordinal = 1
    """The number of the attempt wanted, through all rounds."""
    failures: Counter = 0
    """What the round has used of its budget before this attempt."""
    not_before: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    waiting_since: AwareDatetime | None = None
    """The first of the attempts in a row that the provider has throttled or could not be asked for."""
    traceparent: str | None = Field(None, exclude=True)
    """Of what this follows from: a header, not a part of the body."""

    def headers(self) -> dict[str, Any]:
        """AMQP headers, a dict of its own per message."""
        headers: dict[str, Any] = {
            DELIVERY_ID_HEADER: str(self.delivery_id),
            NOTIFICATION_ID_HEADER: str(self.notification_id),
            ROUND_HEADER: self.round,
        }
        if self.traceparent is not None:
            headers[TRACEPARENT_HEADER] = self.traceparent
        return headers


class DeliveryResult(_Frozen):
    """How one attempt ended, or (expired) that no attempt is made any more."""

    delivery_id: UUID
    round: Ordinal
    attempt: Counter
    """The number of provider calls so far, this one included."""
    failures: Counter
    """What the round has used of its budget, this attempt included."""
    outcome: Outcome
    error_class: ErrorClass | None = None
    error_code: ShortText | None = None
    error_text: ShortText | None = None
    provider_message_id: ShortText | None = None
    started_at: AwareDatetime
    finished_at: AwareDatetime
    next_attempt_at: AwareDatetime | None = None
    traceparent: ShortText | None = None
    """Of the attempt."""


class DeliveryResults(_Frozen):
    """Results of one sender, in the order they came."""

    version: Literal[1] = 1
    results: tuple[DeliveryResult, ...]


class ResultsEnvelope(_Frozen):
    """`DeliveryResults` with its items unread, so that one bad item does not spoil its neighbours."""

    version: Literal[1]
    results: tuple[Any, ...]


class StatusChange(_Frozen):
    """A delivery has a new status."""

    delivery_id: UUID
    notification_id: UUID
    channel: Channel
    status: DeliveryStatus
    round: Ordinal
    attempt: Counter
    changed_at: AwareDatetime
    """As PostgreSQL has it."""
    error_class: ErrorClass | None = None
    error_code: ShortText | None = None


class StatusChanges(_Frozen):
    """Changes of status that were committed together, all with one channel and one new status.

    With none of them: some were dropped, for want of a RabbitMQ that takes them.
    """

    version: Literal[1] = 1
    changes: tuple[StatusChange, ...]
