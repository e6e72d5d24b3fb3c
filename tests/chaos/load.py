"""A client that wants every one of its notifications accepted, at a steady rate."""

import asyncio
import time
from dataclasses import dataclass, field
from uuid import uuid4

import httpx

CHANNELS = ["telegram", "email"]
OUTSTANDING = 1000  # requests; past it the client waits
RETRY_INTERVAL = 0.3  # seconds


@dataclass
class Load:
    """Posts `rate` notifications a second; each request is repeated, with its idempotency key, until its 201."""

    client: httpx.AsyncClient
    rate: float
    accepted: dict[str, float] = field(default_factory=dict)
    """Ids, with the time (seconds since the epoch) of their 201."""
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
                posting.create_task(self.post(number + 1)).add_done_callback(lambda _: places.release())

    async def post(self, user_id: int) -> str | None:
        """Post one until it is accepted; its id."""
        body = {"user_id": user_id, "message": "Your order has left.", "channels": CHANNELS}
        headers = {"Idempotency-Key": uuid4().hex}
        while True:
            try:
                answer = await self.client.post("/api/notifications", json=body, headers=headers)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == httpx.codes.CREATED:
                notification_id: str = answer.json()["id"]
                self.accepted[notification_id] = time.time()
                self.answered += 1
                return notification_id
            if answer is not None and answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                self.refusals.append(f"{answer.status_code} {answer.text}")
                return None
            self.repeats += 1
            await asyncio.sleep(RETRY_INTERVAL)
