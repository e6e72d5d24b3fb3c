"""Requests and responses of the routes under `/api` that differ from those under `/v1`."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from notify_common.contracts.channels import Channel, Recipients
from notify_common.contracts.messages import EmailContent, ErrorClass
from notify_common.contracts.users import user_columns
from pydantic import BaseModel, Field, model_validator

from notify_gateway.deliveries import schemas as deliveries
from notify_gateway.deliveries.schemas import CREATED_AFTER, CREATED_BEFORE, CancelReason, RetryFilter
from notify_gateway.http.fields import Expansion, LooseFutureTime, LooseTime, RequestModel, StoredChannel, UserId
from notify_gateway.http.problems import Problem
from notify_gateway.notifications import schemas as current
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
    rule,
)
from notify_gateway.notifications.status import NotificationStatus
from notify_gateway.users import schemas as users

EXAMPLE_REQUESTS: dict[str, Any] = {
    "one channel": {"value": {"user_id": 123, "message": "Your code: 11111", "type": "telegram"}},
    "two channels": {
        "value": {
            "user_id": 123,
            "message": "Your order 5512 has left our warehouse.",
            "channels": ["telegram", "email"],
            "subject": "Your order is on its way",
            "recipient": {"email": "a@example.org", "telegram": "123456789"},
            "metadata": {"order": "5512"},
        }
    },
}


class LegacyNotificationRequest(RequestModel):
    """A notification to send over one channel (`type`) or several (`channels`)."""

    recipients_field: ClassVar = "recipient"

    user_id: Annotated[UserId, Field(strict=True)]
    message: Message
    type: Channel | None = None
    channels: Channels | None = None
    subject: Subject | None = Field(None, description=SUBJECT)
    email: EmailOptions | None = None
    recipient: Recipients = Field(Recipients(), description=RECIPIENTS)
    metadata: Metadata | None = Field(None, description=METADATA)
    send_at: LooseFutureTime | None = Field(None, description=SEND_AT)
    expires_at: LooseFutureTime | None = Field(None, description=EXPIRES_AT)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.type is None) == (self.channels is None):
            raise rule("channels", "exactly one of `type` and `channels` is required")
        check_channels(self, email_field="email")
        check_times(self)
        return self

    @property
    def user(self) -> str:
        """The id of the user."""
        return str(self.user_id)

    @property
    def reference(self) -> str | None:
        """None, because these requests have no reference."""
        return None

    @property
    def recipients(self) -> Recipients:
        """The recipients that the request names."""
        return self.recipient

    @property
    def email_options(self) -> EmailContent | None:
        """The options for delivery by e-mail."""
        return self.email

    def names_all_recipients(self) -> bool:
        """Return whether the request names a recipient for each of its channels."""
        return all(self.recipient.of(channel) is not None for channel in self.requested_channels())

    def requested_channels(self) -> list[Channel]:
        """Return the channels from `type` or `channels`, in the order in which responses list them."""
        return sorted(self.channels or ([self.type] if self.type else []))


class LegacyAttempt(deliveries.Attempt):
    """An attempt to send a delivery: one call to the provider."""

    error_class: ErrorClass | None
    error_code: str | None
    error_text: str | None = Field(None, description="The provider's error message.")
    provider_message_id: str | None
    next_attempt_at: datetime | None


class LegacyDeliverySummary(deliveries.DeliverySummary):
    """The delivery of a notification over one channel."""

    recipient: str | None
    reason: CancelReason | None = Field(None, description="The reason, if it was cancelled.")


class LegacyDeliveryOfNotification(LegacyDeliverySummary):
    """A delivery with the id of its notification."""

    notification_id: UUID
    round: int = Field(description="The current round. Each retry by an operator starts a new one.")


class LegacyDelivery(LegacyDeliverySummary):
    """A delivery with its latest attempts."""

    attempts: list[LegacyAttempt] = Field(description="The last 100 attempts, in order.")
    earlier_attempts: int = Field(0, description="The number of attempts before the first of `attempts`.")


class LegacyNotificationSummary(BaseModel):
    """A notification with its deliveries, but without their attempts."""

    id: UUID
    user_id: UserId
    message: str
    type: StoredChannel | None = Field(description="The channel, if there is only one.")
    channels: list[StoredChannel]
    status: NotificationStatus
    subject: str | None
    metadata: dict[str, str] | None
    created_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    test: bool = Field(False, description="True if a test key posted it, so that nothing is really sent.")
    deliveries: list[LegacyDeliverySummary]


class LegacyNotification(LegacyNotificationSummary):
    """A notification with its deliveries and their attempts."""

    trace_id: str | None = Field(None, description="The trace id (32 hexadecimal digits) of a traced notification.")
    email: EmailContent | None
    deliveries: list[LegacyDelivery]  # type: ignore[assignment]  # a narrower type is safe, as the field is only read


class LegacyNotificationPage(BaseModel):
    """A page of notifications, newest first."""

    items: list[LegacyNotificationSummary]
    next_cursor: UUID | None = Field(description="The `cursor` of the next page; null on the last page.")


class ListQuery(RequestModel):
    """A filter for notifications."""

    user_id: UserId | None = None
    status: NotificationStatus | None = None
    channel: Channel | None = Field(None, description="Only notifications with a delivery over this channel.")
    created_after: LooseTime | None = Field(
        None,
        description="Only notifications created at or after this time. Without `user_id`, defaults to 24 hours before "
        "`created_before`.",
    )
    created_before: LooseTime | None = Field(None, description="Only notifications created before this time.")
    limit: int = Field(50, ge=1, le=200)
    cursor: UUID | None = None

    def current(self) -> current.ListQuery:
        """Return the same filter for `/v1`."""
        return current.ListQuery(
            user_id=None if self.user_id is None else str(self.user_id),
            status=[] if self.status is None else [self.status],
            channel=self.channel,
            created_after=self.created_after,
            created_before=self.created_before,
            limit=self.limit,
            cursor=self.cursor,
            expand=[Expansion.CONTENT],
        )


class UserListQuery(RequestModel):
    """A filter for one user's notifications."""

    status: NotificationStatus | None = None


class LegacyRetryRequest(RetryFilter):
    """A filter for the failed deliveries to retry. A delivery must match every field that is given."""

    created_after: LooseTime | None = Field(None, description=CREATED_AFTER)
    created_before: LooseTime | None = Field(None, description=CREATED_BEFORE)
    dry_run: bool = Field(False, strict=True, description="Count the deliveries, but do not retry them.")


class LegacyRetryJob(deliveries.RetryProgress):
    """A job that retries many deliveries in the background."""

    channel: StoredChannel | None
    error_class: ErrorClass | None
    finished_at: datetime | None


class LegacyUserChannel(users.UserChannel):
    """A user's stored recipient and opt-out for one channel."""

    recipient: str | None


class LegacyCancellationProblem(Problem):
    """A notification that could not be cancelled completely, with the status of each delivery."""

    deliveries: list[LegacyDeliverySummary]


NO_INTEGER = "user_id: is not an integer; /v1 has the notifications of all users"


def has_integer_user(notification: current.Notification) -> bool:
    """Return whether the id of the notification's user is an integer."""
    return user_columns(notification.user_id).user_key is None


def summary(notification: current.Notification) -> LegacyNotificationSummary:
    """Return the notification in the form that lists under `/api` have."""
    return LegacyNotificationSummary.model_construct(
        **_fields(notification),
        deliveries=[
            LegacyDeliverySummary.model_construct(**_delivery_fields(each)) for each in notification.deliveries
        ],
    )


def view(notification: current.Notification) -> LegacyNotification:
    """Return the notification in the form that it has under `/api`."""
    overrides = notification.overrides
    return LegacyNotification.model_construct(
        **_fields(notification),
        email=None if overrides is None else overrides.email,
        trace_id=notification.trace_id,
        deliveries=[LegacyDelivery.model_construct(**_delivery_fields(each)) for each in notification.deliveries],
    )


def delivery(delivery: deliveries.Delivery) -> LegacyDeliveryOfNotification:
    """Return the delivery in the form that it has under `/api`."""
    return LegacyDeliveryOfNotification.model_construct(**_delivery_fields(delivery))


def _fields(notification: current.Notification) -> dict[str, Any]:
    fields = {
        name: value for name, value in vars(notification).items() if name in LegacyNotificationSummary.model_fields
    }
    channels = fields["channels"]
    fields |= {"user_id": int(notification.user_id), "type": channels[0] if len(channels) == 1 else None}
    del fields["deliveries"]
    return fields


def _delivery_fields(delivery: deliveries.DeliverySummary) -> dict[str, Any]:
    """Return the fields of all forms of a delivery."""
    fields = vars(delivery)
    if attempts := fields.get("attempts"):
        return {**fields, "attempts": [LegacyAttempt.model_construct(**vars(attempt)) for attempt in attempts]}
    return fields
