"""A mail server that keeps a ledger of accepted messages and supports the same fault modes as the simulators."""

import asyncio
import logging
import re
import time
from pathlib import Path
from typing import cast

from aiosmtpd.smtp import SMTP, Envelope, Session
from support.conformance import SECRET, Behaviour
from support.smtp_peer import SmtpPeer
from typing_extensions import override

MESSAGE_ID = re.compile(rb"^Message-ID:\s*<([0-9a-f-]{36})@", re.MULTILINE | re.IGNORECASE)
MODES = {"hang": Behaviour.HANG, "fail": Behaviour.TEMPORARY}


class MailServer(SmtpPeer):
    """A mail server on 127.0.0.1; `folder` is the simulators' folder for ledgers and the fault mode."""

    def __init__(self, folder: Path) -> None:
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # hide aiosmtpd's deprecation warning for each login
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self._mode = folder / "mode"
        # Ledgers are named after the sender's process id. A mail server does not know it, so it uses 0 for unknown.
        self._ledger = folder / "0.ledger"

    def environment(self) -> dict[str, str]:
        """Return the settings that make the senders and the gateway use this server."""
        return {
            "EMAIL_PROVIDER": "smtp",
            "EMAIL_FROM": "Example Shop <orders@example.org>",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.settings().smtp_port),
            "SMTP_USER": "orders",
            "SMTP_PASSWORD": SECRET,
            "SMTP_CA_FILE": str(self.settings().smtp_ca_file),
        }

    @override
    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        self.behaviour = MODES[self._mode.read_text()] if self._mode.exists() else Behaviour.ACCEPT
        return await super().handle_RCPT(_server, _session, envelope, address, _options)

    @override
    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:
        [delivery_id] = MESSAGE_ID.findall(cast("bytes", envelope.original_content))
        with self._ledger.open("a") as ledger:
            ledger.write(f"{time.time():.3f} {delivery_id.decode()} 0 0\n")
        return "250 2.0.0 accepted"

    async def down(self, seconds: float) -> None:
        """Close all connections, and keep the port closed for `seconds`."""
        await self.close()
        await asyncio.sleep(seconds)
        await self.open()
