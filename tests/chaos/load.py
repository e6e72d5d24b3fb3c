"""A steady load of immediate, scheduled, expiring and cancelled notifications; each is posted until accepted.

Some faults need notifications of other kinds: with large bodies, or to recipients that reject them.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
from notify_common.contracts.channels import Channel
from support.processes import TRY_AGAIN

PATH = "/api/notifications"
CHANNELS = list(Channel)
# The limit on concurrent requests; more would be slow, because httpx searches its whole pool for each request.
OUTSTANDING = 100
BURST = 40  # concurrent requests of a burst
RETRY_INTERVAL = 0.3  # seconds
LIFE = 3.0  # seconds; an expiring notification lives no longer than this
CANCELLED_AFTER = 3600.0  # seconds from now to the `send_at` of a notification that is cancelled at once


class Kind(Enum):
    """A kind of notification."""

    PLAIN = "plain"
    SCHEDULED = "scheduled"
    EXPIRING = "expiring"
    CANCELLED = "cancelled"
    LARGE = "large"
    RACED = "raced"


# The kinds in the steady load: of every ten notifications, seven are plain.
KINDS = [Kind.PLAIN] * 7 + [Kind.SCHEDULED, Kind.EXPIRING, Kind.CANCELLED]
LARGE_HTML = "x" * 65_536  # bytes
REJECTING = {
    Channel.TELEGRAM: "@simulator_permanent",
    Channel.EMAIL: "permanent@simulator.invalid",
    Channel.WEBHOOK: "https://permanent.simulator.invalid/",
}


@dataclass(frozen=True)
class Accepted:
    """An accepted notification; times are in seconds since the epoch."""

    at: float
    kind: Kind = Kind.PLAIN
    time: float | None = None
    """The notification's `send_at` or `expires_at`, or None if it has neither."""
    channels: int = len(CHANNELS)
    """The number of its channels."""
    posted_at: float = 0.0
    """When the client first posted it."""


@dataclass
class Load:
    """A client that posts `rate` notifications a second to the gateways in turn.

    A scheduled notification is due at most `ahead` seconds after it is posted. Each request is repeated with the same
    idempotency key until a gateway accepts or rejects it.
    """

    gateways: list[httpx.AsyncClient]
    rate: float
    ahead: float
    recipients: bool = False
    """True if each notification has an e-mail address."""
    accepted: dict[str, Accepted] = field(default_factory=dict)
    """The accepted notifications by id."""
    answered: int = 0
    """The number of requests that got a 201."""
    repeats: int = 0
    refused_at: list[float] = field(default_factory=list)
    """When a gateway did not accept a notification, which was then posted again."""
    refusals: list[str] = field(default_factory=list)
    """The error responses that no fault explains."""

    async def run(self, least: int, enough: asyncio.Event | None = None) -> None:
        """Post at least `least` notifications, and further ones until `enough` is set."""
        places = asyncio.Semaphore(OUTSTANDING)
        began = time.monotonic()
        async with asyncio.TaskGroup() as posting:
            for number in count():
                if number >= least and (enough is None or enough.is_set()):
                    break
                await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                await places.acquire()
                posting.create_task(self.post(number + 1, KINDS[number % len(KINDS)])).add_done_callback(
                    lambda _: places.release()
                )

    async def post_many(self, number: int, kind: Kind) -> list[str]:
        """Post `number` notifications in a burst; return the ids of those that were accepted."""
        places = asyncio.Semaphore(BURST)

        async def post(user_id: int) -> str | None:
            async with places:
                return await self.post(user_id, kind)

        return [each for each in await asyncio.gather(*map(post, range(1, number + 1))) if each is not None]

    @contextmanager
    def avoiding(self, number: int) -> Iterator[None]:
        """Send no new requests to one of the gateways until the context ends."""
        gateway = self.gateways.pop(number)
        try:
            yield
        finally:
            self.gateways.insert(number, gateway)

    async def post(self, user_id: int, kind: Kind = Kind.PLAIN) -> str | None:
        """Post a notification, cancel it if its kind is `CANCELLED`, and return its id, or None if it was rejected."""
        posted_at, due, body = time.time(), self._time_of(kind), self._body(user_id, kind)
        if due is not None:
            body["expires_at" if kind is Kind.EXPIRING else "send_at"] = datetime.fromtimestamp(due, UTC).isoformat()
        response = await self._post(user_id, PATH, json=body, headers={"Idempotency-Key": uuid4().hex})
        if response.status_code != httpx.codes.CREATED:
            # An expiring notification is rejected if no gateway was available before it expired.
            if not (kind is Kind.EXPIRING and response.status_code == httpx.codes.UNPROCESSABLE_ENTITY):
                self.refusals.append(f"{response.status_code} {response.text}")
            return None
        notification_id: str = response.json()["id"]
        self.accepted[notification_id] = Accepted(time.time(), kind, due, len(body["channels"]), posted_at)
        self.answered += 1
        if kind is Kind.CANCELLED:
            response = await self._post(user_id, f"{PATH}/{notification_id}/cancel")
            if response.status_code != httpx.codes.OK:
                self.refusals.append(f"cancel: {response.status_code} {response.text}")
        return notification_id

    def _body(self, user_id: int, kind: Kind) -> dict[str, Any]:
        channels = [Channel.EMAIL] if kind is Kind.LARGE else CHANNELS
        body: dict[str, Any] = {"user_id": user_id, "message": "Your order has left.", "channels": channels}
        if kind is Kind.LARGE:
            body["email"] = {"html": LARGE_HTML}
        if kind is Kind.RACED:
            body["recipient"] = REJECTING
        elif self.recipients:
            body["recipient"] = {"email": f"user{user_id}@example.org"}
        return body

    async def _post(self, number: int, path: str, **request: Any) -> httpx.Response:
        """Return the first response that does not ask to try again, trying the gateways in turn."""
        while True:
            gateway = self.gateways[number % len(self.gateways)]
            try:
                response = await gateway.post(path, **request)
            except httpx.TransportError:
                response = None
            # A gateway that was paused has not received the whole body in time.
            if response is not None and response.status_code not in {408, *TRY_AGAIN}:
                return response
            self.repeats += 1
            if path == PATH:
                self.refused_at.append(time.time())
            number += 1
            await asyncio.sleep(RETRY_INTERVAL)

    def _time_of(self, kind: Kind) -> float | None:
        ahead = {
            Kind.SCHEDULED: random.uniform(0, self.ahead),
            Kind.EXPIRING: random.uniform(LIFE / 10, LIFE),
            Kind.CANCELLED: CANCELLED_AFTER,
        }.get(kind)
        return None if ahead is None else time.time() + ahead
