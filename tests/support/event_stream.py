"""A subscriber to the gateway's event stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from support.services import TIMEOUT

BODY = {"user_id": 1, "message": "hello", "type": "telegram"}


class Reader:
    """A reader of one event stream."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()
        self.last_id: str | None = None
        """The id of the last event; a client sends it on reconnecting, to get the events that it has missed."""

    async def next(self) -> dict[str, Any] | None:
        """Return the next event (`id`, `event`, `data`), or None at the end of the stream."""
        event: dict[str, Any] = {}
        async with asyncio.timeout(TIMEOUT):
            async for line in self._lines:
                if not line:
                    self.last_id = event.get("id", self.last_id)
                    if "event" in event:
                        return event
                    event = {}
                    continue
                name, _, value = line.partition(": ")
                event[name] = json.loads(value) if name == "data" else value
        return None

    async def status(self) -> dict[str, Any]:
        """Return the next status change; fail if the stream ends first."""
        while (event := await self.next()) is not None:
            if event["event"] == "status":
                return {**event["data"], "id": event["id"]}
        raise AssertionError("the stream ended before the next status change")

    async def until(self, notification: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all status changes up to and including the first one for this notification.

        After a reconnect, the first change may repeat the last one that was read before.
        """
        changes = [await self.status()]
        while changes[-1]["notification_id"] != notification["id"]:
            changes.append(await self.status())
        return changes


@asynccontextmanager
async def reading(
    url: httpx.URL, headers: Mapping[str, str] | None = None, **wanted: object
) -> AsyncIterator[tuple[Reader, bool]]:
    """Open a stream filtered by `wanted`; yield a reader and the `live` flag from the first event."""
    query = httpx.QueryParams({name: str(value) for name, value in wanted.items()})
    async with (
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client,
        client.stream("GET", "/api/events", params=query, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        reader = Reader(answer)
        first = await reader.next()
        assert first is not None
        assert first["event"] == "live"
        yield reader, first["data"]["live"]


async def post(url: httpx.URL, headers: Mapping[str, str] | None = None, **change: object) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/api/notifications", json={**BODY, **change}, headers=headers)
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told
