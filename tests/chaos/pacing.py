"""Check the rate limit of a real provider: a burst of e-mails takes as long as `EMAIL_RATE` says, and none expires."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from notify_local.console import say
from support.processes import FINAL, System, running_system

from chaos.mail_server import MailServer

RATE = 5.0  # e-mails a second, over all senders
EMAILS, PER_RECIPIENT = 600, 10
TOLERANCE = 0.1  # a factor
LIFE = timedelta(
    seconds=EMAILS / RATE * (1 + TOLERANCE) + 20
)  # the life of one e-mail in ten; longer than the burst takes
PATIENCE = EMAILS / RATE * 2  # seconds
CONCURRENCY = 20  # recipients whose e-mails are posted at the same time


@dataclass(frozen=True)
class Paced:
    """The fate of a burst; times are in seconds since the epoch."""

    posted: Sequence[Sequence[UUID]]
    """The deliveries to each recipient, in the order in which they were accepted."""
    statuses: dict[UUID, str]
    sent_at: dict[UUID, list[float]]

    def complaints(self, senders: int) -> list[str]:
        """Return what is wrong. The order is checked for one sender, because several keep only their own order."""
        found = []
        times = sorted(at for sends in self.sent_at.values() for at in sends)
        expected, took = EMAILS / RATE, times[-1] - times[0] if times else 0.0
        if abs(took - expected) > expected * TOLERANCE:
            found.append(f"the burst took {took:.1f} s instead of {expected:.0f}")
        others = [status for status in self.statuses.values() if status != "sent"]
        if others or len(self.statuses) != EMAILS:
            counts = ", ".join(f"{others.count(status)} {status}" for status in sorted(set(others)))
            found.append(
                f"{len(self.statuses) - len(others)} of {EMAILS} were sent in time; {counts or 'none'} otherwise"
            )
        if repeated := sum(len(sends) > 1 for sends in self.sent_at.values()):
            found.append(f"{repeated} e-mails were sent twice")
        if senders == 1 and (disordered := sum(not self._in_order(ids) for ids in self.posted)):
            found.append(f"{disordered} of {len(self.posted)} recipients got their e-mails in the wrong order")
        return found

    def _in_order(self, ids: Sequence[UUID]) -> bool:
        first_sends = [min(self.sent_at[each]) for each in ids if each in self.sent_at]
        return first_sends == sorted(first_sends)


async def check_pacing(folder: Path) -> bool:
    """Send a burst through one sender and, in another system, one through two; return False if either is wrong."""
    bursts, servers = [], []
    with ExitStack() as stack:
        for senders in (1, 2):
            mail_server = MailServer(folder / f"mail-{senders}")
            await mail_server.open()
            servers.append(mail_server)
            settings = {**mail_server.environment(), "EMAIL_RATE": str(RATE / senders), "ERROR_PROBABILITY": "0"}
            scale = {"email_sender": senders}
            starting = running_system(folder / f"pacing-{senders}", settings, scale=scale)
            # The systems start one after the other, so that they do not choose the same free ports.
            bursts.append((senders, await asyncio.to_thread(stack.enter_context, starting)))
        say(f"pacing: {EMAILS} e-mails at {RATE:g} per second, through one sender and through two")
        results = await asyncio.gather(*(_burst(system, folder / f"mail-{n}") for n, system in bursts))
        await asyncio.to_thread(stack.close)
    for mail_server in servers:
        await mail_server.close()
    passed = True
    for (senders, _), paced in zip(bursts, results, strict=True):
        complaints = paced.complaints(senders)
        passed = passed and not complaints
        say(f"pacing, {senders} sender(s): {'; '.join(complaints) or 'as configured'}")
    return passed


async def _burst(system: System, ledgers: Path) -> Paced:
    """Post all e-mails at once, and wait until they are final."""
    places, expires_at = asyncio.Semaphore(CONCURRENCY), datetime.now(UTC) + LIFE

    async def post(recipient: int) -> list[tuple[UUID, UUID]]:
        async with places:
            return [await _post(client, recipient, expires_at if not each else None) for each in range(PER_RECIPIENT)]

    async with system.client() as client:
        accepted = await asyncio.gather(*map(post, range(EMAILS // PER_RECIPIENT)))
        deliveries = dict(pair for pairs in accepted for pair in pairs)
        statuses: dict[UUID, str] = {}
        deadline = time.monotonic() + PATIENCE
        for delivery_id, notification_id in deliveries.items():
            while (status := await _status(client, notification_id)) not in FINAL and time.monotonic() < deadline:  # noqa: ASYNC110 - only the API knows it
                await asyncio.sleep(1)
            statuses[delivery_id] = status
    return Paced([[delivery_id for delivery_id, _ in pairs] for pairs in accepted], statuses, _sends(ledgers))


async def _post(client: httpx.AsyncClient, recipient: int, expires_at: datetime | None) -> tuple[UUID, UUID]:
    """Post an e-mail; return the ids of its delivery and its notification."""
    body: dict[str, Any] = {
        "user_id": recipient + 1,
        "type": "email",
        "message": "Your order has left.",
        "recipient": {"email": f"user{recipient}@example.org"},
    }
    if expires_at is not None:
        body["expires_at"] = expires_at.isoformat()
    notification = (await client.post("/api/notifications", json=body)).raise_for_status().json()
    return UUID(notification["deliveries"][0]["id"]), UUID(notification["id"])


async def _status(client: httpx.AsyncClient, notification_id: UUID) -> str:
    notification = (await client.get(f"/api/notifications/{notification_id}")).raise_for_status().json()
    return str(notification["deliveries"][0]["status"])


def _sends(ledgers: Path) -> dict[UUID, list[float]]:
    sends: defaultdict[UUID, list[float]] = defaultdict(list)
    for file in ledgers.glob("*.ledger"):
        for line in file.read_text().splitlines():
            at, delivery_id, *_ = line.split()
            sends[UUID(delivery_id)].append(float(at))
    return dict(sends)
