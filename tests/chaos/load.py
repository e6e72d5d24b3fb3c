"""Clients that want their notifications accepted, at a steady rate: sent at once, later, in time, or not any more."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import uuid4

import httpx
from notify_common.contracts.channels import Channel

CHANNELS = list(Channel)
# Requests; past it the client waits. The connection pool of httpx looks at each connection for each request.
OUTSTANDING = 100
RETRY_INTERVAL = 0.3  # seconds
LIFE = 3.0  # seconds that one which expires is given at most
CANCELLED_AFTER = 3600.0  # seconds until what is cancelled at once would have been sent


class Kind(Enum):
    """What a client wants of a notification; of ten, seven are plain and one is of each other kind."""

    PLAIN = "plain"
    SCHEDULED = "scheduled"
    EXPIRING = "expiring"
    CANCELLED = "cancelled"


KINDS = [Kind.PLAIN] * 7 + [Kind.SCHEDULED, Kind.EXPIRING, Kind.CANCELLED]


@dataclass(frozen=True)
class Accepted:
    """A notification that was answered 201; times are seconds since the epoch."""

    at: float
    kind: Kind = Kind.PLAIN
    time: float | None = None
    """Its `send_at`, or its `expires_at`."""


@dataclass
class Load:
    """Posts `rate` notifications a second, in turn to each gateway; schedules are up to `ahead` seconds ahead.

    Each request is repeated, with its idempotency key, until its 201.
    """

    gateways: Sequence[httpx.AsyncClient]
    rate: float
    ahead: float
    recipients: bool = False
    """Whether each has an e-mail address."""
    accepted: dict[str, Accepted] = field(default_factory=dict)
    """By id."""
    answered: int = 0
    """Requests that got their 201."""
    repeats: int = 0
    refusals: list[str] = field(default_factory=list)
    """Answers that no fault excuses."""

    async def run(self, count: int) -> None:
        """Post `count` notifications."""
        places = asyncio.Semaphore(OUTSTANDING)
        began = time.monotonic()
        async with asyncio.TaskGroup() as posting:
            for number in range(count):
                await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                await places.acquire()
                posting.create_task(self.post(number + 1, KINDS[number % len(KINDS)])).add_done_callback(
                    lambda _: places.release()
                )

    async def post(self, user_id: int, kind: Kind = Kind.PLAIN) -> str | None:
        """Post one until it is accepted, and cancel it if it is of that kind; its id."""
        wanted = self._time_of(kind)
        body: dict[str, Any] = {"user_id": user_id, "message": "Your order has left.", "channels": CHANNELS}
        if self.recipients:
            body["recipient"] = {"email": f"user{user_id}@example.org"}
        if wanted is not None:
            body["expires_at" if kind is Kind.EXPIRING else "send_at"] = datetime.fromtimestamp(wanted, UTC).isoformat()
        answer = await self._ask(user_id, "/api/notifications", json=body, headers={"Idempotency-Key": uuid4().hex})
        if answer.status_code != httpx.codes.CREATED:
            # Its time may be over before any gateway could take it.
            if not (kind is Kind.EXPIRING and answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY):
                self.refusals.append(f"{answer.status_code} {answer.text}")
            return None
        notification_id: str = answer.json()["id"]
        self.accepted[notification_id] = Accepted(time.time(), kind, wanted)
        self.answered += 1
        if kind is Kind.CANCELLED:
            answer = await self._ask(user_id, f"/api/notifications/{notification_id}/cancel")
            if answer.status_code != httpx.codes.OK:
                self.refusals.append(f"cancel: {answer.status_code} {answer.text}")
        return notification_id

    async def _ask(self, number: int, path: str, **request: Any) -> httpx.Response:
        """The first answer that is not a 503, whichever gateway gives it."""
        while True:
            gateway = self.gateways[number % len(self.gateways)]
            try:
                answer = await gateway.post(path, **request)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
            self.repeats += 1
            number += 1  # a client asks another one then
            await asyncio.sleep(RETRY_INTERVAL)

    def _time_of(self, kind: Kind) -> float | None:
        ahead = {
            Kind.SCHEDULED: random.uniform(0, self.ahead),
            Kind.EXPIRING: random.uniform(LIFE / 10, LIFE),
            Kind.CANCELLED: CANCELLED_AFTER,
        }.get(kind)
        return None if ahead is None else time.time() + ahead
