"""The e-mail that a delivery becomes (RFC 5322)."""

from dataclasses import dataclass
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime

from email_validator import validate_email
from notify_common.messages import DeliveryRequested
from notify_common.process import utc_now

SUBJECT_LENGTH = 78  # of what is cut from the text where there is no subject: RFC 5322, 2.1.1
# Any server takes it: what is not ASCII is encoded.
POLICY = SMTP.clone(cte_type="7bit")
UTF8_POLICY = SMTPUTF8.clone(cte_type="7bit")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message as SMTP takes it."""

    sender: str
    recipient: str
    utf8: bool
    """Whether an address is not ASCII and the server must know SMTPUTF8 (RFC 6531)."""
    content: bytes


@dataclass(frozen=True)
class EmailTemplate:
    """What all messages have in common."""

    sender: Address
    reply_to: Address | None = None
    list_unsubscribe: str | None = None

    def envelope(self, request: DeliveryRequested) -> Envelope:
        """The message for a request that has a recipient; raises `ValueError` where that is no address."""
        valid = validate_email(request.recipient or "", check_deliverability=False)
        # The domain always has a form in ASCII (IDNA).
        recipient = valid.ascii_email or f"{valid.local_part}@{valid.ascii_domain}"
        utf8 = not recipient.isascii()
        message = self._message(request, recipient).as_bytes(policy=UTF8_POLICY if utf8 else POLICY)
        content = self._free_headers(request) + message
        return Envelope(self.sender.addr_spec, recipient, utf8, content)

    def _message(self, request: DeliveryRequested, recipient: str) -> EmailMessage:
        message = EmailMessage(policy=POLICY)
        message["From"] = self.sender
        local_part, _, domain = recipient.rpartition("@")
        message["To"] = Address(username=local_part, domain=domain)
        if self.reply_to is not None:
            message["Reply-To"] = self.reply_to
        message["Date"] = format_datetime(utc_now())
        # The delivery's own: a repeat can be recognised by it.
        message["Message-ID"] = f"<{request.delivery_id}@{self.sender.domain}>"
        # No vacation responder is to answer: RFC 3834, 5.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(request.content.message, charset="utf-8")
        return message

    def _free_headers(self, request: DeliveryRequested) -> bytes:
        """The headers that `EmailMessage` must not see: it decodes what looks encoded, line breaks included."""
        # All kinds of line breaks and control characters that Python takes for space become one.
        subject = " ".join((request.content.subject or _first_line(request.content.message)).split())
        encoded = Header(subject, "utf-8", header_name="Subject").encode(linesep="\r\n")
        lines = f"Subject: {encoded}\r\n"
        if self.list_unsubscribe is not None:
            # Not folded: programs read it.
            lines += f"List-Unsubscribe: {self.list_unsubscribe}\r\n"
        return lines.encode("ascii")


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0].strip()
    return line if len(line) <= SUBJECT_LENGTH else f"{line[: SUBJECT_LENGTH - 1]}…"
