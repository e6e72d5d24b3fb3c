"""Requests and responses of the notification routes."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Self
from uuid import UUID

from notify_common.contracts.channels import Channel, Recipients
from notify_common.contracts.messages import EmailContent
from pydantic import AfterValidator, AnyUrl, BaseModel, Field, TypeAdapter, UrlConstraints, model_validator
from pydantic.networks import validate_email
from pydantic_core import PydanticCustomError

from notify_gateway.deliveries.schemas import DeliverySummary, DeliveryView
from notify_gateway.http.fields import FutureTime, RequestModel, StoredChannel, Time, UserId
from notify_gateway.http.problems import Problem
from notify_gateway.notifications.status import NotificationStatus

LONGEST_SCHEDULE = timedelta(days=90)
LONGEST_UNSUBSCRIBE_URL = 900  # characters; RFC 5322, 2.1.1 limits a header line to 998
HTTPS_URL = TypeAdapter(Annotated[AnyUrl, UrlConstraints(allowed_schemes=["https"])])


def _readable(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("value_error", "must not contain a NUL character")
    if not text.strip():
        raise PydanticCustomError("value_error", "must not be blank")
    return text


# PostgreSQL cannot store NUL, and a subject must be a single line.
MetadataText = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Subject = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00\r\n]*$")]


def _unsubscribe_url(text: str) -> str:
    url = str(HTTPS_URL.validate_python(text))
    if len(url) > LONGEST_UNSUBSCRIBE_URL:
        raise PydanticCustomError("value_error", f"must not be longer than {LONGEST_UNSUBSCRIBE_URL} characters")
    return url


def _reply_to(address: str) -> str:
    _, mailbox = validate_email(address)
    if "<" in address:
        raise PydanticCustomError("value_error", "must be an address without a display name")
    if not mailbox.rpartition("@")[0].isascii():
        raise PydanticCustomError("value_error", "must be ASCII before the @")
    return mailbox


ReplyTo = Annotated[str, AfterValidator(_reply_to), Field(json_schema_extra={"format": "email"})]
UnsubscribeUrl = Annotated[str, AfterValidator(_unsubscribe_url), Field(json_schema_extra={"format": "uri"})]

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


def _rule(field: str, message: str) -> PydanticCustomError:
    """Return an error on `field` for a rule that involves several fields."""
    return PydanticCustomError("value_error", "{message}", {"field": field, "message": message})


class EmailOptions(RequestModel, EmailContent):
    """Options for delivery by e-mail."""

    html: Annotated[str, Field(min_length=1, max_length=65_536), AfterValidator(_readable)] | None = Field(
        None, description="An HTML version of the message, for clients that display HTML."
    )
    reply_to: ReplyTo | None = Field(None, description="The Reply-To address, instead of the one in `EMAIL_REPLY_TO`.")
    list_unsubscribe: UnsubscribeUrl | None = Field(
        None, description="An https URL that unsubscribes the user on a POST (RFC 8058)."
    )


class NotificationRequest(RequestModel):
    """A notification to send over one channel (`type`) or several (`channels`)."""

    user_id: Annotated[UserId, Field(strict=True)]
    message: Annotated[str, Field(min_length=1, max_length=16_384), AfterValidator(_readable)]
    type: Channel | None = None
    channels: Annotated[list[Channel], Field(min_length=1, max_length=len(Channel))] | None = None
    subject: Subject | None = Field(None, description="The subject, for channels that have one: email and webhook.")
    email: EmailOptions | None = None
    recipient: Recipients = Field(
        Recipients(),
        description="Required for each channel that is not simulated, unless a recipient is stored for the user.",
    )
    metadata: Annotated[dict[MetadataKey, MetadataText], Field(max_length=50)] | None = Field(
        None, description="Your own data, which is stored and returned but never sent."
    )
    send_at: FutureTime | None = Field(
        None, description="The earliest time to send, at most 90 days ahead. Defaults to now."
    )
    expires_at: FutureTime | None = Field(
        None, description="Deliveries that are not sent by this time become `expired`."
    )

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if (self.type is None) == (self.channels is None):
            raise _rule("channels", "exactly one of `type` and `channels` is required")
        channels = self.requested_channels()
        if len(set(channels)) != len(channels):
            raise _rule("channels", "must not contain a channel twice")
        for channel in self.recipient.model_fields_set:
            if channel not in channels:
                raise _rule(f"recipient.{channel}", "is not one of the channels of this notification")
        if self.email is not None and Channel.EMAIL not in channels:
            raise _rule("email", "requires the channel email")
        return self

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.expires_at is not None and self.send_at is not None and self.expires_at <= self.send_at:
            raise _rule("expires_at", "must be later than send_at")
        return self

    def rejection_at(self, now: datetime) -> str | None:
        """Return why the request cannot be accepted at `now`, as `field: reason`; None if it can."""
        if self.send_at is not None and self.send_at > now + LONGEST_SCHEDULE:
            return f"send_at: must not be more than {LONGEST_SCHEDULE.days} days ahead"
        if self.expires_at is not None and self.expires_at <= now:
            return "expires_at: must be later than now"
        return None

    def names_all_recipients(self) -> bool:
        """Return whether the request names a recipient for each of its channels."""
        return all(self.recipient.of(channel) is not None for channel in self.requested_channels())

    def requested_channels(self) -> list[Channel]:
        """Return the channels from `type` or `channels`, in the order in which responses list them."""
        return sorted(self.channels or ([self.type] if self.type else []))


class NotificationSummary(BaseModel):
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
    deliveries: list[DeliverySummary]


class NotificationView(NotificationSummary):
    """A notification with its deliveries and their attempts."""

    trace_id: str | None = Field(None, description="The trace id (32 hexadecimal digits) of a traced notification.")
    email: EmailContent | None
    deliveries: list[DeliveryView]  # type: ignore[assignment]  # a narrower type is safe, as the field is only read


class NotificationPage(BaseModel):
    """A page of notifications, newest first."""

    items: list[NotificationSummary]
    next_cursor: UUID | None = Field(description="The `cursor` of the next page; null on the last page.")


class ListQuery(RequestModel):
    """A filter for notifications."""

    user_id: UserId | None = None
    status: NotificationStatus | None = None
    channel: Channel | None = Field(None, description="Only notifications with a delivery over this channel.")
    created_after: Time | None = Field(
        None,
        description="Only notifications created at or after this time. Without `user_id`, defaults to 24 hours before "
        "`created_before`.",
    )
    created_before: Time | None = Field(None, description="Only notifications created before this time.")
    limit: int = Field(50, ge=1, le=200)
    cursor: UUID | None = None


class UserListQuery(RequestModel):
    """A filter for one user's notifications."""

    status: NotificationStatus | None = None


class CancellationProblem(Problem):
    """A notification that could not be cancelled completely, with the status of each delivery."""

    deliveries: list[DeliverySummary]
