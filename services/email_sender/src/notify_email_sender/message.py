"""Build the e-mail for a delivery (RFC 5322)."""

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

SUBJECT_LENGTH = 78  # characters; the limit for a subject that is taken from the text (RFC 5322, 2.1.1)
# Non-ASCII text is encoded, so that every server accepts the message.
POLICY = SMTP.clone(cte_type="7bit")
# Date and Message-ID are not signed, because some relays replace them.
SIGNED_HEADERS = [
    b"from", b"to", b"reply-to", b"subject", b"mime-version", b"content-type",
    b"content-transfer-encoding", b"list-unsubscribe", b"list-unsubscribe-post",
]  # fmt: skip
UTF8_POLICY = SMTPUTF8.clone(cte_type="7bit")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message with its SMTP envelope."""

    sender: str
    recipient: str
    utf8: bool
    """True if the recipient is not ASCII, so that the server must support SMTPUTF8 (RFC 6531)."""
    content: bytes


@dataclass(frozen=True)
class DkimKey:
    """A key that signs messages (RFC 6376). Its public half is in the DNS, at `<selector>._domainkey.<domain>`."""

    selector: str
    private_key: bytes = field(repr=False)
    """An RSA key in PEM format."""

    def signature(self, content: bytes, domain: str) -> bytes:
        """Return the signature's header line, which must precede all other headers."""
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
    """The properties that all messages share."""

    sender: Address
    reply_to: Address | None = None
    list_unsubscribe: str | None = None
    dkim: DkimKey | None = None

    def envelope(self, request: DeliveryRequested) -> Envelope:
        """Return the message for a request; raise `ValueError` if its recipient is not a valid address."""
        valid = validate_email(request.recipient or "", check_deliverability=False)
        # Only the local part may be non-ASCII; every domain has an ASCII form (IDNA).
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
        email = request.content.email or EmailContent()
        reply_to = self.reply_to if email.reply_to is None else address_of(email.reply_to)
        if reply_to is not None:
            message["Reply-To"] = reply_to
        message["Date"] = format_datetime(utc_now())
        # The Message-ID contains the delivery id, so that mail programs can recognize duplicates.
        message["Message-ID"] = f"<{request.delivery_id}@{self.sender.domain}>"
        # Suppress auto-replies (RFC 3834, 5).
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(request.content.message, charset="utf-8")
        if email.html is not None:
            message.add_alternative(email.html, subtype="html", charset="utf-8")
        return message

    def _free_headers(self, request: DeliveryRequested) -> bytes:
        """Return the headers that bypass `EmailMessage`, because it would decode line breaks in encoded words."""
        # `split` treats every kind of line break as whitespace, so none of them can reach a header.
        subject = " ".join((request.content.subject or _first_line(request.content.message)).split())
        encoded = Header(subject, "utf-8", header_name="Subject").encode(linesep="\r\n")
        lines = f"Subject: {encoded}\r\n"
        # These headers are not folded, because some programs that read them cannot unfold them.
        email = request.content.email
        if email and email.list_unsubscribe:
            lines += f"List-Unsubscribe: <{email.list_unsubscribe}>\r\n"
            lines += "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        elif self.list_unsubscribe is not None:
            lines += f"List-Unsubscribe: {self.list_unsubscribe}\r\n"
        return lines.encode("ascii")


def address_of(mailbox: str) -> Address:
    """Parse `orders@example.org` or `Example Shop <orders@example.org>`, and convert the domain to ASCII (IDNA)."""
    name, addr_spec = parse_mailbox(mailbox)
    local_part, _, domain = addr_spec.rpartition("@")
    ascii_domain = idna.encode(domain, uts46=True).decode()
    return Address(display_name=name if "<" in mailbox else "", username=local_part, domain=ascii_domain)


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0].strip()
    return line if len(line) <= SUBJECT_LENGTH else f"{line[: SUBJECT_LENGTH - 1]}…"
