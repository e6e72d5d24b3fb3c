"""Check the rate limit of a real provider: a burst of e-mails takes as long as `EMAIL_RATE` says, and none expires."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from notify_local.console import say
from support.processes import FINAL, System, running_system
from typing_extensions import override

from chaos.mail_server import MailServer

PER_RECIPIENT = 10
TOLERANCE = 0.1  # a factor
CONCURRENCY = 20  # recipients whose e-mails are posted at the same time


@dataclass(frozen=True)
class Burst:
    """A number of e-mails that are posted at once, and the limit at which they are to be sent."""

    emails: int
    rate: float
    """E-mails a second, over all senders."""
    senders: int

    @property
    def seconds(self) -> float:
        """The time from the first send to the last."""
        return self.emails / self.rate

    def expiry(self) -> datetime:
        """Return when one e-mail in ten expires: a while after the last one should have been sent."""
        return datetime.now(UTC) + timedelta(seconds=self.seconds * 1.5)

    @override
    def __str__(self) -> str:
        return f"{self.emails} e-mails at {self.rate:g} per second through {self.senders} sender(s)"


# At 1 per second, the concurrent calls of one sender wait longer for their turns than at 5 per second.
BURSTS = (Burst(600, 5, 1), Burst(600, 5, 2), Burst(120, 1, 1))


@dataclass(frozen=True)
class Paced:
    """The fate of a burst; times are in seconds since the epoch."""

    posted: Sequence[Sequence[UUID]]
    """The deliveries to each recipient, in the order in which they were accepted."""
    statuses: Mapping[UUID, str]
    sent_at: Mapping[UUID, Sequence[float]]

    def complaints(self, burst: Burst) -> list[str]:
        """Return what is wrong. The order is checked for one sender, because several keep only their own order."""
        found = []
        times = sorted(at for sends in self.sent_at.values() for at in sends)
        took = times[-1] - times[0] if times else 0.0
        if abs(took - burst.seconds) > burst.seconds * TOLERANCE:
            found.append(f"took {took:.1f} s instead of {burst.seconds:.0f}")
        if len(self.sent_at) < burst.emails:
            counts = ", ".join(f"{count} {status}" for status, count in sorted(Counter(self.statuses.values()).items()))
            found.append(f"only {len(self.sent_at)} were sent: {counts}")
        elif not_sent := [status for status in self.statuses.values() if status != "sent"]:
            found.append(f"{len(not_sent)} were sent but are {', '.join(sorted(set(not_sent)))}")
        if repeated := sum(len(sends) > 1 for sends in self.sent_at.values()):
            found.append(f"{repeated} e-mails were sent twice")
        if burst.senders == 1 and (disordered := sum(not self._in_order(ids) for ids in self.posted)):
            found.append(f"{disordered} of {len(self.posted)} recipients got their e-mails in the wrong order")
        return found

    def _in_order(self, ids: Sequence[UUID]) -> bool:
        first_sends = [min(self.sent_at[each]) for each in ids if each in self.sent_at]
        return first_sends == sorted(first_sends)


async def check_pacing(folder: Path) -> bool:
    """Send all bursts at the same time, each in its own system; return False if one of them is wrong."""
    systems, mail_servers = [], []
    with ExitStack() as stack:
        for number, burst in enumerate(BURSTS):
            ledgers = folder / f"mail-{number}"
            mail_servers.append(mail_server := MailServer(ledgers))
            await mail_server.open()
            limit = {"EMAIL_RATE": str(burst.rate / burst.senders), "ERROR_PROBABILITY": "0"}
            settings, scale = {**mail_server.environment(), **limit}, {"email_sender": burst.senders}
            starting = running_system(folder / f"pacing-{number}", settings, scale=scale)
            # The systems start one after the other, so that they do not choose the same free ports.
            systems.append((burst, await asyncio.to_thread(stack.enter_context, starting), ledgers))
        say("pacing: " + "; ".join(map(str, BURSTS)))
        results = await asyncio.gather(*(_send(*each) for each in systems))
        await asyncio.to_thread(stack.close)
    for mail_server in mail_servers:
        await mail_server.close()
    found = [paced.complaints(burst) for burst, paced in zip(BURSTS, results, strict=True)]
    for burst, complaints in zip(BURSTS, found, strict=True):
        say(f"{burst}: {'; '.join(complaints) or 'as configured'}")
    return not any(found)


async def _send(burst: Burst, system: System, ledgers: Path) -> Paced:
    """Post all e-mails at once, and wait until they are final, but no longer than twice the time they should take."""
    places, expires_at = asyncio.Semaphore(CONCURRENCY), burst.expiry()

    async def post(recipient: int) -> list[tuple[UUID, UUID]]:
        async with places:
            return [await _post(client, recipient, expires_at if not each else None) for each in range(PER_RECIPIENT)]

    async with system.client() as client:
        accepted = await asyncio.gather(*map(post, range(burst.emails // PER_RECIPIENT)))
        deliveries = dict(pair for pairs in accepted for pair in pairs)
        statuses: dict[UUID, str] = {}
        deadline = time.monotonic() + 2 * burst.seconds
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
