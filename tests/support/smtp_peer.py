"""A fake mail provider."""

import asyncio
import ssl
from email import message_from_bytes, policy
from email.message import EmailMessage, Message
from pathlib import Path
from typing import cast

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from notify_common.sending.provider import Provider
from notify_email_sender.settings import EmailSenderSettings
from notify_email_sender.smtp import Smtp
from typing_extensions import override

from support.conformance import SECRET, Behaviour


class _Server(SMTP):
    @override
    async def smtp_DATA(self, arg: str) -> None:
        if self.event_handler.behaviour is Behaviour.CUT_IN_DATA:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            cast("asyncio.Transport", self.transport).abort()
        else:
            await super().smtp_DATA(arg)


class SmtpPeer:
    """An SMTP server that requires STARTTLS and a login."""

    recipient = "a@example.org"

    def __init__(self, folder: Path) -> None:
        self.behaviour, self.connections = Behaviour.ACCEPT, 0
        self.script: list[Behaviour] = []
        """The behaviours for the next messages, one per message; the last one stays in effect."""
        self.asked = asyncio.Event()
        self.messages: list[EmailMessage] = []
        self.contents: list[bytes] = []
        self.raw: list[Message] = []
        """The messages with their headers exactly as received."""
        self._port = 0
        self._server: asyncio.Server | None = None
        self._protocols: set[SMTP] = set()
        authority = trustme.CA()
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(self._tls)
        self._ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self._ca_file)

    def settings(self, secret: str = SECRET, **change: object) -> EmailSenderSettings:
        return EmailSenderSettings.model_validate(
            {
                "email_provider": "smtp",
                "email_from": "Example Shop <orders@example.org>",
                "smtp_host": "127.0.0.1",
                "smtp_port": self._port,
                "smtp_user": "orders",
                "smtp_password": secret,
                "smtp_ca_file": self._ca_file,
                "provider_timeout": 5,
                **change,
            }
        )

    def provider(self, secret: str = SECRET) -> Provider:
        return Smtp(self.settings(secret))

    def received(self) -> list[str]:
        return [message.get_content().replace("\r\n", "\n").rstrip("\n") for message in self.messages]

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for protocol in self._protocols:
            if protocol.transport is not None:
                cast("asyncio.Transport", protocol.transport).abort()
        self._protocols.clear()

    def _protocol(self) -> SMTP:
        self.connections += 1
        protocol = _Server(
            self,
            hostname="localhost",
            tls_context=self._tls,
            require_starttls=True,
            authenticator=self._authenticate,
            auth_required=True,
            enable_SMTPUTF8=True,
            loop=asyncio.get_running_loop(),
        )
        self._protocols.add(protocol)
        return protocol

    def _authenticate(self, _: object, __: object, ___: object, ____: str, login: LoginPassword) -> AuthResult:
        return AuthResult(success=login.password == SECRET.encode(), handled=False)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        self.asked.set()
        if self.script:
            self.behaviour = self.script.pop(0)
        match self.behaviour:
            case Behaviour.PERMANENT:
                return f"550 5.1.1 <{address}>: no such user"
            case Behaviour.TEMPORARY:
                return "450 4.2.1 mailbox busy"
            case Behaviour.THROTTLE:
                return "421 4.7.0 too many messages, come back later"
            case Behaviour.HANG:
                await asyncio.Event().wait()
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        if self.behaviour is Behaviour.BREAK:
            cast("asyncio.Transport", server.transport).abort()
            return "250 never received"
        content = cast("bytes", envelope.original_content)
        self.contents.append(content)
        self.raw.append(message_from_bytes(content, policy=policy.compat32))
        self.messages.append(message_from_bytes(content, policy=policy.default))
        return f"250 2.0.0 queued as {len(self.messages)}"
