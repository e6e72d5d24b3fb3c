"""Deliver over SMTP (RFC 5321), on connections that stay open between messages."""

import asyncio
import re
import ssl
import time
from dataclasses import dataclass, field
from typing import cast

import aiosmtplib
from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending import errors

from notify_email_sender.message import Envelope
from notify_email_sender.settings import EmailSenderSettings, SmtpTls

CONNECT_TIMEOUT = 10.0  # seconds for connection, greeting, TLS and login; never more than half of an attempt's time
QUIT_TIMEOUT = 1.0  # seconds
IDLE_TIMEOUT = 20.0  # seconds; short, because servers close idle connections too
MESSAGES_PER_CONNECTION = 100
TRANSIENT, PERMANENT = 4, 5  # the first digit of a reply: RFC 5321, 4.2.1
LOGIN_REJECTED = frozenset({530, 534, 535, 538})  # the login is missing or rejected: RFC 4954, 6
NOT_AVAILABLE = 421  # "closing transmission channel": RFC 5321, 3.8
ADDRESS = re.compile(r"\S+@\S+")


class _ClosedWhileIdle(Exception):
    """The server closed a connection between two messages, which is normal."""


@dataclass(slots=True)
class _Connection:
    client: aiosmtplib.SMTP
    transport: asyncio.Transport | None = None
    """Kept here, because the client drops its reference when the server replies with 421."""
    messages: int = 0
    idle_since: float = field(default_factory=time.monotonic)

    @property
    def usable(self) -> bool:
        """True if another message may be sent on this connection."""
        idle = time.monotonic() - self.idle_since
        return self.client.is_connected and self.messages < MESSAGES_PER_CONNECTION and idle < IDLE_TIMEOUT

    def drop(self) -> None:
        """Close at once. An orderly TLS shutdown would wait up to half a minute for an unresponsive server."""
        if self.transport is not None:
            self.transport.abort()
        self.client.close()


class Smtp:
    """A provider that makes one SMTP transaction per delivery. Each concurrent call has its own connection."""

    def __init__(self, settings: EmailSenderSettings) -> None:
        self._settings = settings
        self._template = settings.template()
        self._tls = ssl.create_default_context(cafile=settings.smtp_ca_file)
        self._idle: list[_Connection] = []

    async def send(self, request: DeliveryRequested) -> str:
        """Send the message and return the server's reply, which often contains its queue id."""
        if request.recipient is None:
            raise errors.PermanentFailure("no_recipient")
        try:
            envelope = self._template.envelope(request)
        except ValueError:
            raise errors.PermanentFailure("bad_address") from None
        while True:
            connection = self._take_idle() or await self._connect()
            try:
                return await self._transaction(connection, envelope)
            except _ClosedWhileIdle:
                continue

    async def aclose(self) -> None:
        """Close the idle connections properly, with QUIT."""
        idle, self._idle = self._idle, []
        quits = (connection.client.quit(timeout=QUIT_TIMEOUT) for connection in idle)
        await asyncio.gather(*quits, return_exceptions=True)
        for connection in idle:
            connection.drop()

    async def _transaction(self, connection: _Connection, envelope: Envelope) -> str:
        client = connection.client
        connection.messages += 1
        reusable = content_sent = False
        options = ["SMTPUTF8"] if envelope.utf8 else []
        encoding = "utf-8" if envelope.utf8 else "ascii"
        try:
            await client.mail(envelope.sender, options=options, encoding=encoding)
            await client.rcpt(envelope.recipient, encoding=encoding)
            content_sent = True
            reply = await client.data(envelope.content)
            reusable = True
        except aiosmtplib.SMTPResponseException as rejection:
            if rejection.code == NOT_AVAILABLE and connection.messages > 1 and not content_sent:
                raise _ClosedWhileIdle from None  # too many messages, or idle for too long
            reusable = rejection.code != NOT_AVAILABLE and await _reset(client)
            raise failure(rejection, content_sent=content_sent) from None
        except aiosmtplib.SMTPNotSupported as error:
            reusable = True
            raise errors.PermanentFailure("not_supported", cleaned(str(error))) from None
        except TimeoutError:
            raise  # the caller handles an attempt's timeout
        except OSError as error:  # the connection is lost
            if content_sent:
                raise errors.UnknownOutcome("connection_lost", cleaned(str(error))) from None
            if connection.messages > 1:
                raise _ClosedWhileIdle from None
            raise errors.Unreachable("connection_lost", cleaned(str(error))) from None
        finally:
            if reusable:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
            else:
                # The transaction may have been interrupted at any point, for example by a timeout.
                connection.drop()
        return cleaned(reply.message)

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            # The most recently used connection is reused first, so that the others can time out.
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.drop()
        return None

    async def _connect(self) -> _Connection:
        settings = self._settings
        client = aiosmtplib.SMTP(
            hostname=settings.smtp_host,
            port=settings.port(),
            use_tls=settings.smtp_tls is SmtpTls.TLS,
            start_tls=settings.smtp_tls is SmtpTls.STARTTLS,
            tls_context=self._tls,
            # The client needs its own timeout: before Python 3.12, it can swallow the outer timeout's cancellation.
            timeout=settings.provider_timeout,
        )
        connection, connected = _Connection(client), False
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT, settings.provider_timeout / 2)):
                await client.connect()
                # uvloop's transport class does not derive from asyncio's.
                connection.transport = cast("asyncio.Transport", client.transport)
                if settings.smtp_user is not None and settings.smtp_password is not None:
                    await client.login(settings.smtp_user, settings.smtp_password.get_secret_value())
                elif client.is_ehlo_or_helo_needed:
                    await client.ehlo()
            connected = True
        except aiosmtplib.SMTPResponseException as rejection:
            # A rejected login or greeting must not consume the deliveries' retry budgets.
            found = failure(rejection, content_sent=False)
            raise found if isinstance(found, errors.Throttled) else errors.Unreachable(found.code, found.text) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise errors.Unreachable(_reason(error), cleaned(str(error))) from None
        finally:
            if not connected:
                connection.drop()
        return connection


def failure(rejection: aiosmtplib.SMTPResponseException, *, content_sent: bool) -> errors.ProviderFailure:
    """Classify a negative reply (RFC 5321, 4.2.1): 4yz may succeed later, 5yz never will."""
    code, text = f"smtp_{rejection.code}", cleaned(rejection.message)
    if rejection.code == NOT_AVAILABLE:
        return errors.Throttled(code, text)
    if rejection.code in LOGIN_REJECTED:
        return errors.Unreachable(code, text)
    if rejection.code // 100 == PERMANENT:
        return errors.PermanentFailure(code, text)
    if rejection.code // 100 == TRANSIENT or not content_sent:
        return errors.TemporaryFailure(code, text)
    return errors.UnknownOutcome(code, text)


def cleaned(text: str) -> str:
    """Return the text on one line and without addresses, because it is stored, shown and logged."""
    return ADDRESS.sub("[address]", " ".join(text.split()))


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLError):
        return "tls"
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    if isinstance(error, aiosmtplib.SMTPConnectError):
        return "connect"
    return "handshake"


async def _reset(client: aiosmtplib.SMTP) -> bool:
    """Abort the rejected message, and return True if the connection can be reused."""
    try:
        await client.rset(timeout=CONNECT_TIMEOUT)
    except (aiosmtplib.SMTPException, OSError):
        return False
    return True
