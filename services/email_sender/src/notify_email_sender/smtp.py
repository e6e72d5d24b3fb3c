"""Delivers over SMTP (RFC 5321), on connections that stay open between two messages."""

import asyncio
import re
import ssl
import time
from dataclasses import dataclass, field
from typing import cast

import aiosmtplib
from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.errors import (
    PermanentFailure,
    ProviderFailure,
    TemporaryFailure,
    Throttled,
    UnknownOutcome,
    Unreachable,
)

from notify_email_sender.message import Envelope
from notify_email_sender.settings import EmailSenderSettings, SmtpTls

CONNECT_TIMEOUT = 10.0  # seconds for all of it: connection, greeting, TLS, login; at most half of an attempt's
QUIT_TIMEOUT = 1.0  # seconds
IDLE_TIMEOUT = 20.0  # seconds; servers close idle connections, too
MESSAGES_PER_CONNECTION = 100
TRANSIENT, PERMANENT = 4, 5  # the first digit: RFC 5321, 4.2.1
NOT_LET_IN = frozenset({530, 534, 535, 538})  # the login is missing or refused: RFC 4954, 6
NOT_AVAILABLE = 421  # "closing transmission channel": RFC 5321, 3.8
ADDRESS = re.compile(r"\S+@\S+")


class _ClosedWhileIdle(Exception):
    """The server has closed a connection between two messages: that says nothing about the server."""


@dataclass(slots=True)
class _Connection:
    client: aiosmtplib.SMTP
    transport: asyncio.Transport | None = None
    """The client lets go of it where the server has said 421."""
    messages: int = 0
    idle_since: float = field(default_factory=time.monotonic)

    @property
    def usable(self) -> bool:
        """Whether another message may be tried on it."""
        idle = time.monotonic() - self.idle_since
        return self.client.is_connected and self.messages < MESSAGES_PER_CONNECTION and idle < IDLE_TIMEOUT

    def drop(self) -> None:
        """Close at once. To close TLS in order is to wait for the server's farewell, half a minute if it has none."""
        if self.transport is not None:
            self.transport.abort()
        self.client.close()


class Smtp:
    """One transaction per delivery, and as many connections as there are calls at once: the caller limits those."""

    def __init__(self, settings: EmailSenderSettings) -> None:
        self._settings = settings
        self._template = settings.template()
        self._tls = ssl.create_default_context(cafile=settings.smtp_ca_file)
        self._idle: list[_Connection] = []

    async def send(self, request: DeliveryRequested) -> str:
        """Hand the message over; returns the server's words for having taken it (with its queue id, if it says it)."""
        if request.recipient is None:
            raise PermanentFailure("no_recipient")
        try:
            envelope = self._template.envelope(request)
        except ValueError:
            raise PermanentFailure("bad_address") from None
        while True:
            connection = self._take_idle() or await self._connect()
            try:
                return await self._transaction(connection, envelope)
            except _ClosedWhileIdle:
                continue

    async def aclose(self) -> None:
        """Take leave of the server."""
        idle, self._idle = self._idle, []
        farewells = (connection.client.quit(timeout=QUIT_TIMEOUT) for connection in idle)
        await asyncio.gather(*farewells, return_exceptions=True)
        for connection in idle:
            connection.drop()

    async def _transaction(self, connection: _Connection, envelope: Envelope) -> str:
        client = connection.client
        connection.messages += 1
        at_rest = False  # whether the connection is in a state for another message
        content_sent = False
        options = ["SMTPUTF8"] if envelope.utf8 else []
        encoding = "utf-8" if envelope.utf8 else "ascii"
        try:
            await client.mail(envelope.sender, options=options, encoding=encoding)
            await client.rcpt(envelope.recipient, encoding=encoding)
            content_sent = True
            answer = await client.data(envelope.content)
            at_rest = True
        except aiosmtplib.SMTPResponseException as refusal:
            if refusal.code == NOT_AVAILABLE and connection.messages > 1 and not content_sent:
                raise _ClosedWhileIdle from None  # enough for one connection, or too long idle
            at_rest = refusal.code != NOT_AVAILABLE and await _reset(client)
            raise failure(refusal, content_sent=content_sent) from None
        except aiosmtplib.SMTPNotSupported as lacking:
            at_rest = True
            raise PermanentFailure("not_supported", cleaned(str(lacking))) from None
        except TimeoutError:
            raise  # no answer to a command within the time of an attempt
        except OSError as error:  # the connection is lost
            if content_sent:
                raise UnknownOutcome("connection_lost", cleaned(str(error))) from None
            if connection.messages > 1:
                raise _ClosedWhileIdle from None
            raise Unreachable("connection_lost", cleaned(str(error))) from None
        finally:
            if at_rest:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
            else:
                # In the middle of something, perhaps cut off by a timeout.
                connection.drop()
        return cleaned(answer.message)

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            # The one that has been used last: the others may go.
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
            # Not only around it all: before Python 3.12 a cancellation can be lost in what the client awaits.
            timeout=settings.provider_timeout,
        )
        connection, connected = _Connection(client), False
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT, settings.provider_timeout / 2)):
                await client.connect()
                # That of uvloop does not derive from asyncio's.
                connection.transport = cast("asyncio.Transport", client.transport)
                if settings.smtp_user is not None and settings.smtp_password is not None:
                    await client.login(settings.smtp_user, settings.smtp_password.get_secret_value())
                elif client.is_ehlo_or_helo_needed:
                    await client.ehlo()
            connected = True
        except aiosmtplib.SMTPResponseException as refusal:
            # Also a login that is refused: no delivery is to pay for a wrong password.
            answer = failure(refusal, content_sent=False)
            raise answer if isinstance(answer, Throttled) else Unreachable(answer.code, answer.text) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Unreachable(_reason(error), cleaned(str(error))) from None
        finally:
            if not connected:
                connection.drop()
        return connection


def failure(refusal: aiosmtplib.SMTPResponseException, *, content_sent: bool) -> ProviderFailure:
    """What a reply means (RFC 5321, 4.2.1): 4yz may succeed later, 5yz never will."""
    code, text = f"smtp_{refusal.code}", cleaned(refusal.message)
    if refusal.code == NOT_AVAILABLE:
        return Throttled(code, text)
    if refusal.code in NOT_LET_IN:
        return Unreachable(code, text)
    if refusal.code // 100 == PERMANENT:
        return PermanentFailure(code, text)
    if refusal.code // 100 == TRANSIENT or not content_sent:
        return TemporaryFailure(code, text)
    return UnknownOutcome(code, text)


def cleaned(text: str) -> str:
    """One line without addresses: it is stored, shown and logged."""
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
    """Forget the message that was refused; whether the connection can be used for another one."""
    try:
        await client.rset(timeout=CONNECT_TIMEOUT)
    except (aiosmtplib.SMTPException, OSError):
        return False
    return True
