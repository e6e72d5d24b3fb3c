"""What the API takes and answers."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi.exceptions import RequestValidationError
from notify_common.channels import Channel, Recipients
from notify_common.messages import DeliveryStatus, EmailContent, ErrorClass, Outcome
from notify_database.id_ranges import EPOCH
from pydantic import (
    AfterValidator,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    UrlConstraints,
    ValidationError,
    model_validator,
)
from pydantic.networks import validate_email
from pydantic_core import PydanticCustomError

from notify_gateway.notification_status import NotificationStatus

MAX_USER_ID = 2**63 - 1
LONGEST_SCHEDULE = timedelta(days=90)
LONGEST_UNSUBSCRIBE_URL = 900  # characters; a line of a header has at most 998 (RFC 5322, 2.1.1)
HTTPS_URL = TypeAdapter(Annotated[AnyUrl, UrlConstraints(allowed_schemes=["https"])])


def _fits_64_bits(user_id: int) -> int:
    if user_id > MAX_USER_ID:
        raise PydanticCustomError("less_than_equal", "Input should be less than or equal to 2^63-1")
    return user_id


def _readable(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("value_error", "must not contain a NUL character")
    if not text.strip():
        raise PydanticCustomError("value_error", "must not be blank")
    return text


UserId = Annotated[
    int,
    Field(
        ge=1,
        description="Up to 2^63-1; past 2^53 JavaScript needs care to send and read it.",
        json_schema_extra={"format": "int64"},
    ),
    # Not `le`: the OpenAPI document would round the bound to a float.
    AfterValidator(_fits_64_bits),
]
# Ids carry the milliseconds since then: nothing is older.
Time = Annotated[AwareDatetime, Field(ge=EPOCH + timedelta(days=2))]
# Not past what every time zone can express.
FutureTime = Annotated[
    Time, Field(le=datetime(9000, 1, 1, tzinfo=UTC)), AfterValidator(lambda time: time.astimezone(UTC))
]
# Microseconds since 1970, up to what a `datetime` can express.
EventId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,17}$")]
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

    def problem_now(self, now: datetime) -> str | None:
        """Why this can not be accepted now. A repeat of what was accepted earlier is not asked."""
        if self.send_at is not None and self.send_at > now + LONGEST_SCHEDULE:
            return f"send_at: must not be more than {LONGEST_SCHEDULE.days} days ahead"
        if self.expires_at is not None and self.expires_at <= now:
            return "expires_at: must be later than now"
        return None

    def requested_channels(self) -> list[Channel]:
        """One or many, whichever way they were asked for; in the order in which answers list them."""
        return sorted(self.channels or ([self.type] if self.type else []))


class CancelReason(StrEnum):
    """Why a delivery was cancelled: by a request, or because the user has opted out of its channel."""

    REQUESTED = "requested"
    OPTED_OUT = "opted_out"


class AttemptView(BaseModel):
    """One call of the provider."""

    number: int = Field(validation_alias="attempt")
    round: int
    outcome: Outcome
    error_class: ErrorClass | None
    error_code: str | None
    error_text: str | None = Field(None, description="In the provider's own words.")
    provider_message_id: str | None
    started_at: datetime
    finished_at: datetime
    next_attempt_at: datetime | None


class DeliverySummary(BaseModel):
    """The notification over one channel."""

    id: UUID
    channel: Channel
    recipient: str | None
    status: DeliveryStatus
    reason: CancelReason | None = Field(None, description="Why it was cancelled.")
    updated_at: datetime


class DeliveryOfNotification(DeliverySummary):
    """A delivery that was asked for by its own id."""

    notification_id: UUID


class DeliveryView(DeliverySummary):
    """The notification over one channel, with every attempt."""

    attempts: list[AttemptView]


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


class EventQuery(BaseModel):
    """Which changes of status to hear of."""

    model_config = ConfigDict(extra="forbid")

    user_id: UserId | None = None
    notification_id: UUID | None = None
    channel: Channel | None = None
    last_event_id: EventId | None = Field(None, description="As the header Last-Event-ID, for who can not set one.")


class StatusEvent(BaseModel):
    """A delivery has a new status, or has made another attempt."""

    delivery_id: UUID
    notification_id: UUID
    user_id: UserId
    channel: Channel
    status: DeliveryStatus
    round: int
    attempt: int
    error_class: ErrorClass | None
    error_code: str | None
    changed_at: datetime


class SecondsOverview(BaseModel):
    """How many deliveries, second by second; null where nobody has looked."""

    accepted: list[int]
    sent: list[int | None]
    retrying: list[int | None]
    failed: list[int | None]


class ChannelOverview(BaseModel):
    """What happens on one channel. What RabbitMQ does not tell is null."""

    channel: Channel
    waiting: int | None = Field(description="Messages in the channel's queue.")
    in_flight: int | None = Field(description="Messages that senders have.")
    retrying: int | None = Field(description="Messages in its retry queues.")
    consumers: int | None
    latency_p50: float | None = Field(description="Seconds from acceptance to sent, of the last 2,000.")
    latency_p95: float | None
    seconds: SecondsOverview


class Failures(BaseModel):
    """Failed deliveries of one kind, among the newest 10,000 deliveries."""

    channel: Channel
    error_class: ErrorClass | None
    error_code: str | None
    count: int
    last_at: datetime
    last_notification_id: UUID


class OverviewView(BaseModel):
    """The whole service, of all tenants: numbers, and no content."""

    at: datetime = Field(description="The end of the last of the seconds.")
    live: bool = Field(description="Whether changes of status are heard from RabbitMQ.")
    rabbitmq_connected: bool = Field(description="Whether the outbox relay of this gateway is connected.")
    outbox_rows: int = Field(description="Deliveries that are due and not confirmed by RabbitMQ, 100,000 at most.")
    outbox_oldest_seconds: float
    results_waiting: int | None
    dead_letters: int | None
    channels: list[ChannelOverview]
    failures: list[Failures]


class ConsoleLinks(BaseModel):
    """Where the console leads to."""

    rabbitmq: str | None
    trace: str | None = Field(description="With `{trace_id}` in it.")


class RetryRequest(BaseModel):
    """Which failed deliveries to try again: all that match, of the tenant."""

    model_config = ConfigDict(extra="forbid")

    channel: Channel | None = None
    error_class: ErrorClass | None = Field(None, description="Of the last attempt.")
    created_after: Time | None = Field(
        None, description="Of the notification, inclusive. Without it: the 24 hours before created_before, or now."
    )
    created_before: Time | None = Field(None, description="Exclusive. Without it: now.")
    dry_run: bool = Field(False, strict=True, description="Only count.")


class RetryCount(BaseModel):
    """How many deliveries a retry would take."""

    count: int


class RetryJobView(BaseModel):
    """A retry of many: it goes on in the background, through crashes, until it is finished."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    channel: Channel | None
    error_class: ErrorClass | None
    retried: int = Field(description="Deliveries put back so far.")
    created_at: datetime
    finished_at: datetime | None


class UserChannelSettings(BaseModel):
    """How a user is to be reached over a channel. What is left out stays as it is stored."""

    model_config = ConfigDict(extra="forbid")

    recipient: str | None = Field(None, description="For notifications that name none; null forgets it.")
    opted_out: bool = Field(False, strict=True, description="Nothing is sent over it; deliveries are cancelled.")


def valid_recipient(channel: Channel, recipient: str | None) -> str | None:
    """The recipient as the channel takes it; raises `RequestValidationError`."""
    try:
        return Recipients.model_validate({channel.value: recipient}).of(channel)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise RequestValidationError([{**problem, "loc": ("body", "recipient")} for problem in problems]) from None


class UserChannelView(BaseModel):
    """How a user is reached over a channel."""

    model_config = ConfigDict(from_attributes=True)

    channel: Channel
    recipient: str | None
    opted_out: bool
    updated_at: datetime


class UserListQuery(BaseModel):
    """The filter of the first API."""

    model_config = ConfigDict(extra="forbid")

    status: NotificationStatus | None = None
