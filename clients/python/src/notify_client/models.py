"""Models of the gateway's responses. A test holds these models to the gateway's OpenAPI document.

Newer gateways may return more than these models name. Therefore, unknown fields are ignored, and each set of names also
admits any other text.
"""

from datetime import datetime
from typing import Generic, Literal, TypeAlias, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")

Channel: TypeAlias = Literal["telegram", "email", "webhook"] | str
NotificationStatus: TypeAlias = Literal["pending", "sent", "partially_sent", "failed", "cancelled"] | str
DeliveryStatus: TypeAlias = Literal["pending", "retrying", "sent", "failed", "expired", "cancelled"] | str
CancelReason: TypeAlias = Literal["requested", "opted_out"] | str
Outcome: TypeAlias = Literal["sent", "retrying", "throttled", "failed", "expired"] | str
ErrorClass: TypeAlias = (
    Literal["temporary", "permanent", "throttled", "timeout", "unreachable", "unknown", "poison"] | str
)
Scope: TypeAlias = (
    Literal["send", "read", "admin", "operator", "recipients:read", "recipients:write", "opt-outs:clear", "trace"] | str
)
Expansion: TypeAlias = Literal["attempts", "content"] | str


class Model(BaseModel):
    """The base class of all models. They are immutable."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Page(Model, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    has_more: bool = False
    next_cursor: UUID | None = None
    """The `cursor` of the next page, if there is one."""


class CreatedDelivery(Model):
    """A delivery of a notification that has just been created."""

    id: UUID
    channel: Channel
    status: DeliveryStatus


class CreatedNotification(Model):
    """A notification that the gateway has stored. It is never lost from now on."""

    id: UUID
    status: NotificationStatus
    created_at: datetime
    deliveries: list[CreatedDelivery]


class Attempt(Model):
    """One call of a provider."""

    number: int
    round: int
    outcome: Outcome
    error_class: ErrorClass | None = None
    error_code: str | None = None
    error_text: str | None = None
    """The provider's error message."""
    provider_message_id: str | None = None
    started_at: datetime
    finished_at: datetime
    next_attempt_at: datetime | None = None


class DeliverySummary(Model):
    """A delivery without its attempts."""

    id: UUID
    channel: Channel
    recipient: str | None = None
    """Left out for keys without the scope `recipients:read`."""
    status: DeliveryStatus
    reason: CancelReason | None = None
    """The reason, if it was cancelled."""
    updated_at: datetime


class NotificationDelivery(DeliverySummary):
    """A delivery as part of its notification."""

    attempts: list[Attempt] | None = None
    """The last 100 attempts, in order. Lists contain them only with `expand=["attempts"]`."""
    earlier_attempts: int | None = None
    """The number of attempts before the first of `attempts`."""


class Delivery(NotificationDelivery):
    """A delivery on its own."""

    notification_id: UUID
    user_id: str
    round: int
    """The current round. Each retry by an operator starts a new one."""
    error_class: ErrorClass | None = None
    """The last attempt's, unless it succeeded."""
    error_code: str | None = None
    message: str | None = None
    subject: str | None = None


class StoredEmailOptions(Model):
    """The parts of an e-mail besides its text."""

    html: str | None = None
    reply_to: str | None = None
    list_unsubscribe: str | None = None


class StoredOverrides(Model):
    """The content that differs on single channels."""

    email: StoredEmailOptions


class Notification(Model):
    """A notification with its deliveries."""

    id: UUID
    user_id: str
    reference: str | None = None
    channels: list[Channel]
    status: NotificationStatus
    """`pending` until all deliveries are final."""
    message: str | None = None
    """Lists contain it, and what belongs to it, only with `expand=["content"]`."""
    subject: str | None = None
    overrides: StoredOverrides | None = None
    metadata: dict[str, str] | None = None
    created_at: datetime
    send_at: datetime | None = None
    expires_at: datetime | None = None
    test: bool = False
    """True if a test key posted it, so that nothing is really sent."""
    trace_id: str | None = None
    deliveries: list[NotificationDelivery]

    @property
    def is_final(self) -> bool:
        """True if nothing more happens to it, unless an operator retries a delivery."""
        return self.status != "pending"


class RetryCount(Model):
    """The number of deliveries that a retry would concern."""

    count: int


class RetryProgress(Model):
    """A retry of many deliveries, which runs in the background."""

    id: UUID
    channel: Channel | None = None
    error_class: ErrorClass | None = None
    retried: int
    """The number of deliveries retried so far."""
    created_at: datetime
    finished_at: datetime | None = None


class UserChannel(Model):
    """A user's recipient and opt-out on a channel."""

    channel: Channel
    recipient: str | None = None
    opted_out: bool
    updated_at: datetime


class Key(Model):
    """An API key, without its token."""

    id: UUID
    name: str
    scopes: list[str]
    test: bool
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """Accurate to about a minute."""
    revoked_at: datetime | None = None


class CreatedKey(Model):
    """A new API key."""

    id: UUID
    token: str = Field(repr=False)
    """The key itself, which cannot be read again."""
    name: str
    scopes: list[Scope]
    test: bool
    expires_at: datetime | None = None


class FieldProblem(Model):
    """An invalid field, and why it is invalid."""

    location: str
    """`body`, `query`, `path` or `header`."""
    field: str
    detail: str


class Problem(Model):
    """Why a request failed (RFC 9457). The errors in `notify_client.errors` contain it."""

    type: str = "about:blank"
    """The URL of a description of the `code`."""
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
    code: str
    request_id: str | None = None
    deliveries: list[DeliverySummary] | None = Field(None, repr=False)  # they contain recipients
    """All deliveries, if some of them could not be cancelled."""
