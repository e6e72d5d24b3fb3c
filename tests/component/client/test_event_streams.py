"""Live events, which continue after a gateway has been replaced."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from notify_client import AsyncClient, AuthenticationFailed, Client, Event, Reset, StatusEvent, Unavailable
from notify_client.resources.events import AsyncEventStream, EventStream
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_gateway.events import history as event_history
from support.client import KINDS, FailingServer, Reply
from support.fakes import CuttableNetwork, FakeProvider
from support.services import NOWHERE, TIMEOUT, running_sender, running_status_writer, served_gateway

pytestmark = pytest.mark.parametrize("kind", KINDS)
Next = Callable[[], Any]


class Reading:
    """A stream of either kind."""

    def __init__(self, stream: EventStream | AsyncEventStream) -> None:
        self.stream = stream

    async def next(self) -> Event:
        """Return the next event; fail if none arrives."""
        async with asyncio.timeout(TIMEOUT):
            if isinstance(self.stream, AsyncEventStream):
                return await anext(self.stream)
            return await asyncio.to_thread(next, self.stream)


@asynccontextmanager
async def reading(kind: str, url: object, api_key: str | None = None, **options: Any) -> AsyncIterator[Reading]:
    """Subscribe."""
    if kind == "async":
        async with AsyncClient(str(url), api_key) as client, client.events.stream(**options) as events:
            yield Reading(events)
    else:
        with Client(str(url), api_key) as blocking:
            stream = blocking.events.stream(**options)
            await asyncio.to_thread(stream.__enter__)
            try:
                yield Reading(stream)
            finally:
                await asyncio.to_thread(stream.close)


async def post(url: object, user_id: str = "7") -> str:
    async with AsyncClient(str(url)) as client:
        created = await client.notifications.create(user_id=user_id, channels=["telegram"], message="m")
        return str(created.id)


def described(event: Event) -> tuple[str, str]:
    assert isinstance(event, StatusEvent)
    return str(event.notification_id), event.status


@asynccontextmanager
async def in_front_of(url: httpx.URL, port: int = 0) -> AsyncIterator[CuttableNetwork]:
    """Forward connections to a gateway, from a port that stays the same for its successor."""
    assert url.port is not None
    network = CuttableNetwork(url.host, url.port)
    network.port = port
    await network.open()
    try:
        yield network
    finally:
        await network.close()


async def test_events_continue_where_they_were_after_the_gateway_is_replaced(
    kind: str, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        AsyncExitStack() as subscription,
    ):
        async with served_gateway(rabbit, postgres) as first, in_front_of(first) as network:
            port = network.port
            url = f"http://127.0.0.1:{port}"
            events = await subscription.enter_async_context(reading(kind, url, user_id="7"))
            seen = await post(first)
            assert described(await events.next()) == (seen, "sent")
            assert events.stream.live
        async with served_gateway(rabbit, postgres) as second:
            missed = await post(second)
            async with AsyncClient(str(second)) as client:
                await client.notifications.wait(missed, timeout=TIMEOUT)
            async with in_front_of(second, port):
                # The gateway repeats the first event, but the stream does not.
                assert described(await events.next()) == (missed, "sent")
                await post(second, user_id="8")
                later = await post(second)
                assert described(await events.next()) == (later, "sent")


async def test_another_process_can_continue_at_a_position(
    kind: str, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        async with reading(kind, url) as events:
            first = await post(url)
            assert described(await events.next()) == (first, "sent")
            position = events.stream.last_event_id
        second = await post(url)
        async with reading(kind, url, last_event_id=position) as events:
            repeated = [described(await events.next())]
            while repeated[-1] != (second, "sent"):
                repeated.append(described(await events.next()))
        assert set(repeated) <= {(first, "sent"), (second, "sent")}


async def test_events_that_cannot_be_replayed_are_a_reset(
    kind: str, rabbit: RabbitSettings, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_history, "MAX_REPLAYED", 0)
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        async with reading(kind, url) as events:
            await post(url)
            await events.next()
            position = events.stream.last_event_id
        async with reading(kind, url, last_event_id=position) as events:
            assert await events.next() == Reset()
            later = await post(url)
            assert described(await events.next()) == (later, "sent")


async def test_refused_subscription_is_a_typed_error(kind: str, postgres: PostgresSettings) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url:
        with pytest.raises(AuthenticationFailed):
            async with reading(kind, url, "ntf_unknown"):
                pass


async def test_first_connection_is_given_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    server = FailingServer(Reply(503, b"", {"Retry-After": "0"}))
    async with server.serving() as url:
        with pytest.raises(Unavailable):
            async with reading(kind, url):
                pass
    assert len(server.requests) == 4
