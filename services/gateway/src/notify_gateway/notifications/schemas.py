"""Requests and responses of the notification routes."""

from datetime import datetime
from typing import Any, ClassVar, Self
from uuid import UUID

from notify_common.contracts.channels import Channel, Recipients
from notify_common.contracts.messages import DeliveryStatus, EmailContent
from pydantic import BaseModel, Field, model_validator

from notify_gateway.deliveries.filters import NotificationFilter, Reference
from notify_gateway.deliveries.schemas import DeliverySummary, NotificationDelivery
from notify_gateway.http.fields import FutureTime, Omissible, RequestModel, StoredChannel, UserKey
from notify_gateway.http.problems import ProblemDetails
from notify_gateway.notifications.content import (
    EXPIRES_AT,
    METADATA,
    RECIPIENTS,
    SEND_AT,
    SUBJECT,
    Channels,
    EmailOptions,
    Message,
    Metadata,
    Subject,
    check_channels,
    check_times,
)
from notify_gateway.notifications.status import NotificationStatus

EXAMPLE_REQUESTS: dict[str, Any] = {
    "one channel": {"value": {"user_id": "123", "channels": ["telegram"], "message": "Your code: 11111"}},
    "two channels": {
        "value": {
            "user_id": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
            "channels": ["telegram", "email"],
            "message": "Your order 5512 has left our warehouse.",
            "subject": "Your order is on its way",
            "to": {"email": "a@example.org", "telegram": "123456789"},
            "reference": "order-5512-shipped",
            "metadata": {"order": "5512"},
        }
    },
}


class Overrides(RequestModel, frozen=True):  # pydantic would copy a mutable default for each request
    """What differs on one channel."""

    email: EmailOptions | None = None


class NotificationRequest(RequestModel):
    """A notification to send over one or more channels."""

    recipients_field: ClassVar = "to"

    user_id: UserKey
    channels: Channels
    message: Message
    subject: Subject | None = Field(None, description=SUBJECT)
    to: Recipients = Field(Recipients(), description=RECIPIENTS)
    overrides: Overrides = Overrides()
    reference: Reference | None = Field(
        None, description="Your own id of the notification, by which you can find it. It need not be unique."
    )
    metadata: Metadata | None = Field(None, description=METADATA)
    send_at: FutureTime | None = Field(None, description=SEND_AT)
    expires_at: FutureTime | None = Field(None, description=EXPIRES_AT)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_channels(self, email_field="overrides.email")
        check_times(self)
        return self

    @property
    def user(self) -> str:
        """The id of the user."""
        return self.user_id

    @property
    def recipients(self) -> Recipients:
        """The recipients that the request names."""
        return self.to

    @property
    def email_options(self) -> EmailContent | None:
        """The options for delivery by e-mail."""
        return self.overrides.email

    def requested_channels(self) -> list[Channel]:
        """Return the channels, in the order in which responses list them."""
        return sorted(self.channels)


class CreatedDelivery(BaseModel):
    """A delivery of a new notification."""

    id: UUID
    channel: StoredChannel
    status: DeliveryStatus


class CreatedNotification(BaseModel):
    """A new notification. `Location` is the URL of the whole notification."""

    id: UUID
    status: NotificationStatus
    created_at: datetime
    deliveries: list[CreatedDelivery]


class StoredEmailOptions(EmailContent):
    """Options for delivery by e-mail."""

    html: Omissible[str] = None
    reply_to: Omissible[str] = None
    list_unsubscribe: Omissible[str] = None


class StoredOverrides(BaseModel):
    """What differs on one channel."""

    email: StoredEmailOptions


class Notification(BaseModel):
    """A notification with its deliveries and their attempts. Lists leave out what they have only on request."""

    id: UUID
    user_id: str
    reference: Omissible[str] = None
    channels: list[StoredChannel]
    status: NotificationStatus
    message: Omissible[str] = None
    subject: Omissible[str] = None
    overrides: Omissible[StoredOverrides] = None
    metadata: Omissible[dict[str, str]] = None
    created_at: datetime
    send_at: Omissible[datetime] = None
    expires_at: Omissible[datetime] = None
    test: bool = Field(False, description="True if a test key posted it, so that nothing is really sent.")
    trace_id: Omissible[str] = Field(None, description="The trace id (32 hexadecimal digits), if it is traced.")
    deliveries: list[NotificationDelivery]

    @property
    def is_cancelled(self) -> bool:
        """True if all deliveries are cancelled."""
        return self.status is NotificationStatus.CANCELLED


class NotificationPage(BaseModel):
    """A page of notifications, newest first."""

    items: list[Notification]
    next_cursor: Omissible[UUID] = Field(None, description="The `cursor` of the next page, if there is one.")
    has_more: bool


class ListQuery(NotificationFilter):
    """A filter for notifications."""

    status: list[NotificationStatus] = Field([], max_length=len(NotificationStatus))
    channel: Channel | None = Field(None, description="Only notifications with a delivery over this channel.")


class CancellationProblem(ProblemDetails):
    """A notification that could not be cancelled completely, with the status of each delivery."""

    deliveries: list[DeliverySummary]
