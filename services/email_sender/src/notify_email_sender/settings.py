"""The email sender's settings."""

import re
from enum import StrEnum
from typing import Annotated, Self

import dkim.crypto
from notify_common.runtime.networks import is_loopback
from notify_common.sending.service import SenderSettings
from pydantic import AfterValidator, Field, FilePath, SecretStr, model_validator
from pydantic.networks import validate_email

from notify_email_sender.message import DkimKey, EmailTemplate, address_of

HOST = r"^[A-Za-z0-9_:-]{1,63}(\.[A-Za-z0-9_-]{1,63})*$"  # a name or an address
DKIM_SELECTOR = r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$"
UNSUBSCRIBE_URI = r"<(?:https://|mailto:)[!-;=?-~]+>"  # printable ASCII without < and >
LIST_UNSUBSCRIBE = re.compile(rf"{UNSUBSCRIBE_URI}(?:, ?{UNSUBSCRIBE_URI})*")


class EmailProvider(StrEnum):
    """A way to send e-mails: simulated, or over SMTP."""

    SIMULATOR = "simulator"
    SMTP = "smtp"


class SmtpTls(StrEnum):
    """An encryption mode for the connection to the mail server."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


PORTS = {SmtpTls.STARTTLS: 587, SmtpTls.TLS: 465, SmtpTls.NONE: 25}  # RFC 6409, RFC 8314, RFC 5321


def _mailbox(text: str) -> str:
    _, address = validate_email(text)
    if not address.rpartition("@")[0].isascii():
        raise ValueError("must contain only ASCII characters before the @")
    return text


# `orders@example.org` or `Example Shop <orders@example.org>`
Mailbox = Annotated[str, AfterValidator(_mailbox)]


def _rsa_key(key: SecretStr) -> SecretStr:
    try:
        dkim.crypto.parse_pem_private_key(pem(key))
    except dkim.crypto.UnparsableKeyError:
        raise ValueError("must be an RSA key in PEM format; its line breaks may be written as \\n") from None
    return key


def pem(key: SecretStr) -> bytes:
    """Return the key in PEM format, with escaped line breaks replaced by real ones."""
    return key.get_secret_value().replace("\\n", "\n").encode()


def _list_unsubscribe(text: str) -> str:
    if not LIST_UNSUBSCRIBE.fullmatch(text):
        raise ValueError("must be <https://…> or <mailto:…>; separate multiple URIs with commas")
    return text


# RFC 2369, 3.2
ListUnsubscribe = Annotated[str, AfterValidator(_list_unsubscribe), Field(max_length=900)]


class EmailSenderSettings(SenderSettings):
    """The settings specific to this sender; times are in seconds."""

    email_sleep: float = Field(1.0, ge=0, le=600)
    health_port: int = Field(8082, ge=1, le=65535)
    email_provider: EmailProvider = EmailProvider.SIMULATOR
    email_from: Mailbox | None = None
    email_reply_to: Mailbox | None = None
    email_list_unsubscribe: ListUnsubscribe | None = None
    email_dkim_selector: Annotated[str, Field(pattern=DKIM_SELECTOR, max_length=63)] | None = None
    email_dkim_key: Annotated[SecretStr, AfterValidator(_rsa_key)] | None = None
    email_rate: float = Field(0, ge=0)
    smtp_host: Annotated[str, Field(pattern=HOST)] | None = None
    smtp_port: int | None = Field(None, ge=1, le=65535)
    smtp_tls: SmtpTls = SmtpTls.STARTTLS
    smtp_ca_file: FilePath | None = None
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_connections: int = Field(10, ge=1, le=1000)

    @model_validator(mode="after")
    def _smtp_is_complete(self) -> Self:
        if self.email_provider is EmailProvider.SMTP:
            if self.smtp_host is None or self.email_from is None:
                raise ValueError("EMAIL_PROVIDER=smtp requires SMTP_HOST and EMAIL_FROM")
            if (self.email_dkim_selector is None) != (self.email_dkim_key is None):
                raise ValueError("EMAIL_DKIM_SELECTOR and EMAIL_DKIM_KEY must be set together")
            if (self.smtp_user is None) != (self.smtp_password is None):
                raise ValueError("SMTP_USER and SMTP_PASSWORD must be set together")
            if self.smtp_password is not None and self.smtp_tls is SmtpTls.NONE and not is_loopback(self.smtp_host):
                raise ValueError("SMTP_TLS=none would send SMTP_PASSWORD over the network unencrypted")
        return self

    def port(self) -> int:
        """Return the port of the mail server; the default depends on the encryption mode."""
        return self.smtp_port or PORTS[self.smtp_tls]

    def template(self) -> EmailTemplate:
        """Return the properties that all messages share."""
        selector, key = self.email_dkim_selector, self.email_dkim_key
        return EmailTemplate(
            sender=address_of(self.email_from or ""),
            reply_to=None if self.email_reply_to is None else address_of(self.email_reply_to),
            list_unsubscribe=self.email_list_unsubscribe,
            dkim=None if selector is None or key is None else DkimKey(selector, pem(key)),
        )
