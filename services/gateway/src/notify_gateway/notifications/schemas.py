"""What the notification routes take and return."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Self
from uuid import UUID

from notify_common.contracts.channels import Channel, Recipients
from notify_common.contracts.messages import EmailContent
from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    UrlConstraints,
    model_validator,
)
from pydantic.networks import validate_email
from pydantic_core import PydanticCustomError

from notify_gateway.deliveries.schemas import DeliverySummary, DeliveryView
from notify_gateway.http.fields import FutureTime, Time, UserId
from notify_gateway.http.problems import Problem
from notify_gateway.notifications.status import NotificationStatus

LONGEST_SCHEDULE = timedelta(days=90)
LONGEST_UNSUBSCRIBE_URL = 900  # characters; a line of a header has at most 998 (RFC 5322, 2.1.1)
HTTPS_URL = TypeAdapter(Annotated[AnyUrl, UrlConstraints(allowed_schemes=["https"])])


def _readable(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("value_error", "must not contain a NUL character")
    if not text.strip():
        raise PydanticCustomError("value_error", "must not be blank")
    return text


# PostgreSQL stores no NUL, and a subject is one line.
MetadataText = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Subject = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00\r\n]*$")]


def _unsubscribe_url(text: str) -> str:
    url = str(HTTPS_URL.validate_python(text))
    if len(url) > LONGEST_UNSUBSCRIBE_URL:
        raise PydanticCustomError("value_error", f"must not be longer than {LONGEST_UNSUBSCRIBE_URL} characters")
    return url


def _reply_to(address: str) -> str:
    _, mailbox = validate_email(address)
    if "<" in address:
        raise PydanticCustomError("value_error", "must be an address alone")
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
    """An error that is about `field` although it is found by a rule over several."""
    return PydanticCustomError("value_error", "{message}", {"field": field, "message": message})


class EmailOptions(BaseModel):
    """What goes with the notification by e-mail only."""

    model_config = ConfigDict(extra="forbid")

    html: Annotated[str, Field(min_length=1, max_length=65_536), AfterValidator(_readable)] | None = Field(
        None, description="The message once more, for programs that show HTML."
    )
    reply_to: ReplyTo | None = Field(None, description="In the place of EMAIL_REPLY_TO.")
    list_unsubscribe: UnsubscribeUrl | None = Field(
        None, description="An https URL where one POST unsubscribes (RFC 8058)."
    )

    def content(self) -> EmailContent:
        """As the sender gets it."""
        return EmailContent.model_validate(self.model_dump())


class NotificationRequest(BaseModel):
    """A notification to send. Exactly one of `type` and `channels` says how."""

    model_config = ConfigDict(extra="forbid")

    user_id: Annotated[UserId, Field(strict=True)]
    message: Annotated[str, Field(min_length=1, max_length=16_384), AfterValidator(_readable)]
    type: Channel | None = None
    channels: Annotated[list[Channel], Field(min_length=1)] | None = None
    subject: Subject | None = Field(None, description="For channels that have one: email, webhook.")
    email: EmailOptions | None = None
    recipient: Recipients = Field(
        Recipients(), description="Needed where a channel is sent over for real; the simulator needs none."
    )
    metadata: Annotated[dict[MetadataKey, MetadataText], Field(max_length=50)] | None = Field(
        None, description="Stored and returned, never sent."
    )
    send_at: FutureTime | None = Field(None, description="Not before then; at most 90 days ahead.")
    expires_at: FutureTime | None = Field(None, description="Not from then on: what is not sent yet is `expired`.")

    @model_validator(mode="after")
    def _channels_are_clear(self) -> Self:
        if (self.type is None) == (self.channels is None):
            raise _rule("channels", "exactly one of `type` and `channels` is needed")
        channels = self.requested_channels()
        if len(set(channels)) != len(channels):
            raise _rule("channels", "each channel once")
        for channel in self.recipient.model_fields_set:
            if channel not in channels:
                raise _rule(f"recipient.{channel}", "is not one of the channels of this notification")
        if self.email is not None and Channel.EMAIL not in channels:
            raise _rule("email", "is not one of the channels of this notification")
        return self

    @model_validator(mode="after")
    def _times_are_in_order(self) -> Self:
        if self.expires_at is not None and self.send_at is not None and self.expires_at <= self.send_at:
            raise _rule("expires_at", "must be later than send_at")
        return self

    def rejection_at(self, now: datetime) -> str | None:
        """Return why this cannot be accepted at `now`, as `field: detail`; None if it can."""
        if self.send_at is not None and self.send_at > now + LONGEST_SCHEDULE:
            return f"send_at: must not be more than {LONGEST_SCHEDULE.days} days ahead"
        if self.expires_at is not None and self.expires_at <= now:
            return "expires_at: must be later than now"
        return None

    def requested_channels(self) -> list[Channel]:
        """One or many, whichever way they were asked for; in the order in which answers list them."""
        return sorted(self.channels or ([self.type] if self.type else []))


class NotificationSummary(BaseModel):
    """A notification as a list shows it."""

    id: UUID
    user_id: UserId
    message: str
    type: Channel | None = Field(description="Where there is one channel.")
    channels: list[Channel]
    status: NotificationStatus
    subject: str | None
    metadata: dict[str, str] | None
    created_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    deliveries: list[DeliverySummary]


class NotificationView(NotificationSummary):
    """A notification with its whole story."""

    trace_id: str | None = Field(None, description="Of its trace, 32 hexadecimal digits; where there is one.")
    email: EmailContent | None
    deliveries: list[DeliveryView]  # type: ignore[assignment]  # a narrower item: read only, so it is safe


class NotificationPage(BaseModel):
    """Notifications, newest first."""

    items: list[NotificationSummary]
    next_cursor: UUID | None = Field(description="The `cursor` of the next page; null on the last one.")


class ListQuery(BaseModel):
    """Which notifications to list."""

    model_config = ConfigDict(extra="forbid")

    user_id: UserId | None = None
    status: NotificationStatus | None = None
    channel: Channel | None = Field(None, description="Those that go (also) over this channel.")
    created_after: Time | None = Field(
        None, description="Inclusive. Without it and a user_id: the 24 hours before created_before, or now."
    )
    created_before: Time | None = Field(None, description="Exclusive.")
    limit: int = Field(50, ge=1, le=200)
    cursor: UUID | None = None


class UserListQuery(BaseModel):
    """The filter of the first API."""

    model_config = ConfigDict(extra="forbid")

    status: NotificationStatus | None = None


class CancellationProblem(Problem):
    """A notification that could not be cancelled as a whole, with the status of all its deliveries."""

    deliveries: list[DeliverySummary]
