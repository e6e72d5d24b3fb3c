"""The e-mail that a delivery becomes (RFC 5322)."""

from dataclasses import dataclass, field
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime

import dkim
import idna
from email_validator import validate_email
from notify_common.contracts.messages import DeliveryRequested, EmailContent
from notify_common.runtime.clock import utc_now
from pydantic.networks import validate_email as parse_mailbox

SUBJECT_LENGTH = 78  # of what is cut from the text where there is no subject: RFC 5322, 2.1.1
# Any server takes it: what is not ASCII is encoded.
POLICY = SMTP.clone(cte_type="7bit")
# Not Date and Message-ID: some relays put their own in their place.
SIGNED_HEADERS = [
    b"from", b"to", b"reply-to", b"subject", b"mime-version", b"content-type",
    b"content-transfer-encoding", b"list-unsubscribe", b"list-unsubscribe-post",
]  # fmt: skip
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
class DkimKey:
    """What messages are signed with (RFC 6376); `<selector>._domainkey.<domain of the sender>` has the other half."""

    selector: str
    private_key: bytes = field(repr=False)
    """RSA, as PEM."""

    def signature(self, content: bytes, domain: str) -> bytes:
        """The header that vouches for the message: one more line, before all others."""
        header: bytes = dkim.sign(
            content,
            self.selector.encode(),
            domain.encode(),
            self.private_key,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=SIGNED_HEADERS,
        )
        return header


@dataclass(frozen=True)
class EmailTemplate:
    """What all messages have in common."""

    sender: Address
    reply_to: Address | None = None
    list_unsubscribe: str | None = None
    dkim: DkimKey | None = None

    def envelope(self, request: DeliveryRequested) -> Envelope:
        """The message for a request that has a recipient; raises `ValueError` where that is no address."""
        valid = validate_email(request.recipient or "", check_deliverability=False)
        # The domain always has a form in ASCII (IDNA).
        recipient = valid.ascii_email or f"{valid.local_part}@{valid.ascii_domain}"
        utf8 = not recipient.isascii()
        message = self._message(request, recipient).as_bytes(policy=UTF8_POLICY if utf8 else POLICY)
        content = self._free_headers(request) + message
        if self.dkim is not None:
            content = self.dkim.signature(content, self.sender.domain) + content
        return Envelope(self.sender.addr_spec, recipient, utf8, content)

    def _message(self, request: DeliveryRequested, recipient: str) -> EmailMessage:
        message = EmailMessage(policy=POLICY)
        message["From"] = self.sender
        local_part, _, domain = recipient.rpartition("@")
        message["To"] = Address(username=local_part, domain=domain)
        own = request.content.email or EmailContent()
        if own.reply_to is not None:
            message["Reply-To"] = address_of(own.reply_to)
        elif self.reply_to is not None:
            message["Reply-To"] = self.reply_to
        message["Date"] = format_datetime(utc_now())
        # The delivery's own: a repeat can be recognised by it.
        message["Message-ID"] = f"<{request.delivery_id}@{self.sender.domain}>"
        # No vacation responder is to answer: RFC 3834, 5.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(request.content.message, charset="utf-8")
        if own.html is not None:
            message.add_alternative(own.html, subtype="html", charset="utf-8")
        return message

    def _free_headers(self, request: DeliveryRequested) -> bytes:
        """The headers that `EmailMessage` must not see: it decodes what looks encoded, line breaks included."""
        # All kinds of line breaks and control characters that Python takes for space become one.
        subject = " ".join((request.content.subject or _first_line(request.content.message)).split())
        encoded = Header(subject, "utf-8", header_name="Subject").encode(linesep="\r\n")
        lines = f"Subject: {encoded}\r\n"
        # Neither is folded: programs read them.
        if request.content.email and request.content.email.list_unsubscribe:
            lines += f"List-Unsubscribe: <{request.content.email.list_unsubscribe}>\r\n"
            lines += "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        elif self.list_unsubscribe is not None:
            lines += f"List-Unsubscribe: {self.list_unsubscribe}\r\n"
        return lines.encode("ascii")


def address_of(mailbox: str) -> Address:
    """What `orders@example.org` or `Example Shop <orders@example.org>` names; its domain in ASCII (IDNA)."""
    name, addr_spec = parse_mailbox(mailbox)
    local_part, _, domain = addr_spec.rpartition("@")
    ascii_domain = idna.encode(domain, uts46=True).decode()
    return Address(display_name=name if "<" in mailbox else "", username=local_part, domain=ascii_domain)


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0].strip()
    return line if len(line) <= SUBJECT_LENGTH else f"{line[: SUBJECT_LENGTH - 1]}…"
