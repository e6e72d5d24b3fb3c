"""The content of a notification, and the rules that apply to every request for one."""

from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Protocol

from notify_common.contracts.channels import Channel, Recipients, email_address
from notify_common.contracts.messages import EmailContent
from pydantic import AfterValidator, AnyUrl, Field, TypeAdapter, UrlConstraints
from pydantic_core import PydanticCustomError

from notify_gateway.http.fields import FutureTime, RequestModel

LONGEST_SCHEDULE = timedelta(days=90)
LONGEST_UNSUBSCRIBE_URL = 900  # characters; RFC 5322, 2.1.1 limits a header line to 998
HTTPS_URL = TypeAdapter(Annotated[AnyUrl, UrlConstraints(allowed_schemes=["https"])])


def _readable(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("value_error", "must not contain a NUL character")
    if not text.strip():
        raise PydanticCustomError("value_error", "must not be blank")
    return text


def _unsubscribe_url(text: str) -> str:
    # The parser takes several milliseconds for a very long host name. What it returns may be longer than the text.
    if len(text) <= LONGEST_UNSUBSCRIBE_URL:
        url = str(HTTPS_URL.validate_python(text))
        if len(url) <= LONGEST_UNSUBSCRIBE_URL:
            return url
    raise PydanticCustomError("value_error", f"must not be longer than {LONGEST_UNSUBSCRIBE_URL} characters")


def _reply_to(address: str) -> str:
    mailbox = email_address(address)
    if "<" in address:
        raise PydanticCustomError("value_error", "must be an address without a display name")
    if not mailbox.rpartition("@")[0].isascii():
        raise PydanticCustomError("value_error", "must be ASCII before the @")
    return mailbox


# PostgreSQL cannot store NUL, and a subject must be a single line.
Message = Annotated[str, Field(min_length=1, max_length=16_384), AfterValidator(_readable)]
Subject = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00\r\n]*$")]
MetadataText = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Metadata = Annotated[dict[MetadataKey, MetadataText], Field(max_length=50)]
Channels = Annotated[list[Channel], Field(min_length=1, max_length=len(Channel))]
ReplyTo = Annotated[str, AfterValidator(_reply_to), Field(json_schema_extra={"format": "email"})]
UnsubscribeUrl = Annotated[str, AfterValidator(_unsubscribe_url), Field(json_schema_extra={"format": "uri"})]

SUBJECT = "The subject, for channels that have one: email and webhook."
RECIPIENTS = "Required for each channel that is not simulated, unless a recipient is stored for the user."
METADATA = "Your own data, which is stored and returned but never sent."
SEND_AT = "The earliest time to send, at most 90 days ahead. Defaults to now."
EXPIRES_AT = "Deliveries that are not sent by this time become `expired`."


class EmailOptions(RequestModel, EmailContent):
    """Options for delivery by e-mail."""

    html: Annotated[str, Field(min_length=1, max_length=65_536), AfterValidator(_readable)] | None = Field(
        None, description="An HTML version of the message, for clients that display HTML."
    )
    reply_to: ReplyTo | None = Field(None, description="The Reply-To address, instead of the one in `EMAIL_REPLY_TO`.")
    list_unsubscribe: UnsubscribeUrl | None = Field(
        None, description="An https URL that unsubscribes the user on a POST (RFC 8058)."
    )


class RequestedNotification(Protocol):
    """The content of a request, in any version of the API."""

    recipients_field: ClassVar[str]
    """The name of the field with the recipients."""
    message: str
    subject: str | None
    metadata: dict[str, str] | None
    send_at: FutureTime | None
    expires_at: FutureTime | None

    @property
    def user(self) -> str:
        """The id of the user."""

    @property
    def reference(self) -> str | None:
        """The client's own id of the notification."""

    @property
    def recipients(self) -> Recipients:
        """The recipients that the request names."""

    @property
    def email_options(self) -> EmailContent | None:
        """The options for delivery by e-mail."""

    def requested_channels(self) -> list[Channel]:
        """Return the channels, in the order in which responses list them."""


def rule(field: str, message: str) -> PydanticCustomError:
    """Return an error on `field` for a rule that involves several fields."""
    return PydanticCustomError("value_error", "{message}", {"field": field, "message": message})


def check_channels(request: RequestedNotification, *, email_field: str) -> None:
    """Check the rules that involve the channels; `email_field` has the options for e-mails."""
    channels = request.requested_channels()
    if len(set(channels)) != len(channels):
        raise rule("channels", "must not contain a channel twice")
    for channel in request.recipients.model_fields_set:
        if channel not in channels:
            raise rule(f"{request.recipients_field}.{channel}", "is not one of the channels of this notification")
    if request.email_options is not None and Channel.EMAIL not in channels:
        raise rule(email_field, "requires the channel email")


def check_times(request: RequestedNotification) -> None:
    """Check the rules that involve the times."""
    if request.expires_at is not None and request.send_at is not None and request.expires_at <= request.send_at:
        raise rule("expires_at", "must be later than send_at")


def rejection_at(request: RequestedNotification, now: datetime) -> str | None:
    """Return why the request cannot be accepted at `now`, as `field: reason`; None if it can."""
    if request.send_at is not None and request.send_at > now + LONGEST_SCHEDULE:
        return f"send_at: must not be more than {LONGEST_SCHEDULE.days} days ahead"
    if request.expires_at is not None and request.expires_at <= now:
        return "expires_at: must be later than now"
    return None
