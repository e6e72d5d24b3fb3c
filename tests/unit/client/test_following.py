"""Follow a notification whose events are late."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from notify_client import AsyncClient
from notify_client.cli.following import states
from typing_extensions import override

ID = "01a21796-9ba4-7f77-9831-86d22ad5a07b"


class Silence(httpx.AsyncByteStream):
    """A stream of events in which nothing happens."""

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b": nothing\n\n"
        await asyncio.Event().wait()


async def test_notification_is_read_without_events_and_the_subscription_stays_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notify_client.cli.following.LONGEST_SILENCE", 0.01)
    statuses = iter(["pending", "pending", "pending", "sent"])
    subscriptions = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/events":
            subscriptions.append(request)
            return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Silence())
        status, at = next(statuses), "2026-11-26T11:18:40Z"
        delivery = {"id": ID, "channel": "email", "status": status, "updated_at": at}
        notification = {
            "id": ID,
            "user_id": "1",
            "channels": ["email"],
            "status": status,
            "created_at": at,
            "deliveries": [delivery],
        }
        return httpx.Response(200, json=notification)

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as http:
        client = AsyncClient("http://gateway", http_client=http)
        assert [each.status async for each in states(client, ID)] == ["pending", "sent"]
    assert len(subscriptions) == 1
