"""The notification channels, and the recipient format that each of them accepts."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, StringConstraints, TypeAdapter
from pydantic.networks import validate_email

from notify_common.contracts.simulated_recipients import Behaviour, simulated_behaviour


class Channel(StrEnum):
    """A way to reach a user."""

    TELEGRAM = "telegram"
    EMAIL = "email"
    WEBHOOK = "webhook"


# During an upgrade and after a rollback, the tables may contain channels that only a newer version knows.
KNOWN_CHANNELS = tuple(Channel)


def _telegram(recipient: str) -> str:
    if recipient.lower().startswith("@simulator_") and simulated_behaviour(recipient) is None:
        # A real chat may have such a name, and a mistyped test recipient must not send messages to it.
        raise ValueError(f"is not a test recipient: @simulator_ must be followed by one of {', '.join(Behaviour)}")
    return recipient


# A chat id (negative for groups) or the @name of a public chat: https://core.telegram.org/bots/api#sendmessage
TelegramRecipient = Annotated[
    str, StringConstraints(pattern=r"^(-?[1-9][0-9]{0,18}|@[A-Za-z][A-Za-z0-9_]{3,31})$"), AfterValidator(_telegram)
]


# An address has at most 254 characters (RFC 5321), and a display name may precede it. The time that `validate_email`
# takes grows with the square of the length: 2,000 spaces before an address would take as long as many requests.
LONGEST_MAILBOX = 500


def email_address(mailbox: str) -> str:
    """Return the address in a mailbox such as `a@example.org` or `Example Shop <a@example.org>`, or raise an error."""
    if len(mailbox) > LONGEST_MAILBOX:
        raise ValueError(f"must not be longer than {LONGEST_MAILBOX} characters")
    return validate_email(mailbox)[1]


def _email(address: str) -> str:
    # Test recipients skip `validate_email`, because it rejects all addresses in the domain `.invalid`.
    return address if simulated_behaviour(address) else email_address(address)


EmailRecipient = Annotated[str, AfterValidator(_email), Field(json_schema_extra={"format": "email"})]


URL = TypeAdapter(HttpUrl)
LONGEST_URL = 2083


def _webhook(text: str) -> str:
    url = URL.validate_python(text)
    if len(str(url)) > LONGEST_URL:
        raise ValueError(f"must not be longer than {LONGEST_URL} characters in its ASCII form")
    try:
        (url.host or "").strip("[]").encode("idna")
    except UnicodeError:
        raise ValueError("has an invalid host name") from None
    if url.username or url.password or url.fragment:
        raise ValueError("must not contain credentials or a fragment")
    if (url.host or "").endswith(".invalid") and simulated_behaviour(str(url)) is None:
        raise ValueError(f"is not a test recipient: .simulator.invalid must come after one of {', '.join(Behaviour)}")
    return str(url)


WebhookRecipient = Annotated[
    str, StringConstraints(pattern="^https?://"), AfterValidator(_webhook), Field(json_schema_extra={"format": "uri"})
]


class Recipients(BaseModel):
    """A notification's recipients: one optional field per channel, named after the channel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    telegram: TelegramRecipient | None = None
    email: EmailRecipient | None = None
    webhook: WebhookRecipient | None = None

    def of(self, channel: Channel) -> str | None:
        """Return the recipient for `channel`, or None if there is none."""
        recipient: str | None = getattr(self, channel.value)
        return recipient
