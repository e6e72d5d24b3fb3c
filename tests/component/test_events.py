"""Changes of status, told as they are written."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, closing, suppress
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, DeliveryStatus, StatusChange
from notify_common.rabbitmq import events
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import EventPublisher
from notify_common.runtime.clock import utc_now
from notify_common.sending.errors import PermanentFailure
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys import store as api_keys
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.events import history as event_history
from notify_gateway.events import hub as event_hub
from notify_gateway.events import stream as event_stream
from notify_gateway.events import subscriber as event_subscriber
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.hub import EventHub
from notify_gateway.events.stream import EventStream
from notify_gateway.http.authentication import Scope
from notify_gateway.http.middleware import UNLIMITED
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand
from support.fakes import CuttableNetwork, FakeProvider
from support.servers import Servers
from support.services import (
    NOWHERE,
    TIMEOUT,
    eventually,
    running_sender,
    running_status_writer,
    served_gateway,
)
from uuid_utils.compat import uuid7

BODY = {"user_id": 1, "message": "hello", "type": "telegram"}


class Reader:
    """One who reads an event stream."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()
        self.last_id: str | None = None
        """By which a client asks for what it has missed."""

    async def next(self) -> dict[str, Any] | None:
        """The next event: `id`, `event`, `data`; None at the end."""
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
        """The next change of status."""
        while (event := await self.next()) is not None:
            if event["event"] == "status":
                return {**event["data"], "id": event["id"]}
        raise AssertionError("the stream has ended")

    async def until(self, notification: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All changes up to the first of that notification; the last one of what was read may have come again."""
        changes = [await self.status()]
        while changes[-1]["notification_id"] != notification["id"]:
            changes.append(await self.status())
        return changes


@asynccontextmanager
async def reading(
    url: httpx.URL, headers: Mapping[str, str] | None = None, **wanted: object
) -> AsyncIterator[tuple[Reader, bool]]:
    """A stream, begun: its reader, and whether it is told what happens as it happens."""
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


async def event_queues(servers: Servers, rabbit: RabbitSettings) -> list[str]:
    with servers.management() as management:
        queues = management.get(f"/api/queues/{rabbit.rabbitmq_vhost}").json()
    return [queue["name"] for queue in queues if queue["name"].startswith("notifications.events.")]


async def refuses_email(request: DeliveryRequested) -> str:
    if request.channel is Channel.EMAIL:
        raise PermanentFailure("blocked")
    return "sent"


async def test_each_hears_what_it_wants_from_whichever_gateway(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with (
        running_sender(rabbit, FakeProvider(refuses_email)),
        running_sender(rabbit, FakeProvider(refuses_email), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as first,
        served_gateway(rabbit, postgres) as second,
        reading(first) as (everything, live),
        reading(second, user_id=2) as (of_user, _),
        reading(second, channel="email") as (by_email, _),
    ):
        assert live
        one = await post(first)
        heard = await everything.status()
        assert (heard["notification_id"], heard["user_id"], heard["channel"]) == (one["id"], 1, "telegram")
        assert (heard["status"], heard["round"], heard["attempt"], heard["error_class"]) == ("sent", 1, 1, None)
        two = await post(first, user_id=2, type="email")
        heard = await of_user.status()
        assert heard == await by_email.status() == await everything.status()
        assert (heard["delivery_id"], heard["status"]) == (two["deliveries"][0]["id"], "failed")
        assert (heard["error_class"], heard["error_code"]) == ("permanent", "blocked")
        async with (
            reading(second, notification_id=two["id"]) as (of_two, _),
            httpx.AsyncClient(base_url=first) as client,
        ):
            # Whoever reads the database sees the same time.
            stored = (await client.get(f"/api/notifications/{two['id']}")).json()
            assert stored["deliveries"][0]["updated_at"] == heard["changed_at"]
            await everything.until(await post(first))
            assert (await client.post(f"/api/deliveries/{heard['delivery_id']}/retry")).status_code == 202
            again = [await of_two.status() for _ in range(2)]
        assert [(each["status"], each["round"], each["attempt"]) for each in again] == [
            ("pending", 2, 1),
            ("failed", 2, 2),
        ]


async def test_who_was_away_gets_what_it_has_missed_from_postgresql(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with running_sender(rabbit, FakeProvider()), running_status_writer(rabbit, postgres):
        async with served_gateway(rabbit, postgres) as url, reading(url) as (reader, _):
            seen = await post(url)
            last = await reader.status()
            assert last["notification_id"] == seen["id"]
        async with served_gateway(rabbit, postgres) as url:
            missed = await post(url)

            async def sent() -> bool:
                async with engine.connect() as connection:
                    count = await connection.execute(text("SELECT count(*) FROM deliveries WHERE status = 'sent'"))
                    return bool(count.scalar_one() == 2)

            await eventually(sent, "both are sent")
            for how in ({"headers": {"Last-Event-ID": last["id"]}}, {"last_event_id": last["id"]}):
                async with reading(url, **how) as (reader, _):
                    # What is near the last one may come again, exactly as it came first.
                    assert (await reader.until(missed))[0] == last
                    later = await post(url, user_id=3)
                    assert (await reader.until(later))[-1]["user_id"] == 3
            later_than_all = int(utc_now().timestamp() + 60) * 1_000_000
            async with reading(url, {"Last-Event-ID": str(later_than_all)}) as (reader, _):
                latest = await post(url, user_id=4)
                assert last not in await reader.until(latest)


async def test_the_queue_is_there_only_while_somebody_listens(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with served_gateway(rabbit, postgres) as url:
        assert await event_queues(servers, rabbit) == []
        async with reading(url), reading(url, user_id=1):

            async def one() -> bool:
                return len(await event_queues(servers, rabbit)) == 1

            await eventually(one, "one queue for all who listen")

        async def none() -> bool:
            return not await event_queues(servers, rabbit)

        await eventually(none, "the queue is gone")


async def test_with_rabbitmq_away_a_stream_says_so_and_ends_when_it_is_back(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(through, postgres) as url,
        reading(url) as (reader, live),
    ):
        assert live
        await network.close()
        assert await reader.next() == {"event": "live", "data": {"live": False}}
        async with reading(url) as (_, told):
            assert not told
        waiting = await post(url)
        await network.open()
        # It may have missed something: it comes back, and has lost nothing.
        while (event := await reader.next()) is not None:
            assert event["event"] in {"live", "status"}
        # It has read no change yet, and knows all the same since when it was away.
        async with reading(url, last_event_id=reader.last_id) as (returned, told):
            assert told
            assert await returned.until(waiting)
    await network.close()


async def test_who_may_have_missed_what_was_dropped_on_the_way_is_told_to_ask_anew(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_WAITING", 1)
    change = StatusChange(
        delivery_id=uuid7(), notification_id=uuid7(), channel=Channel.EMAIL, status=DeliveryStatus.SENT, round=1,
        attempt=1, changed_at=utc_now(),
    )  # fmt: skip
    publisher = EventPublisher(rabbit, "test")
    async with served_gateway(rabbit, postgres) as url, reading(url) as (reader, _):
        published = await hand.listen("notifications.events", "#")
        publisher.publish([change])
        publisher.publish([change])  # one too many
        async with publisher.running(), asyncio.timeout(TIMEOUT):
            assert [(await published.get()).routing_key for _ in range(2)] == ["email.sent", "dropped"]
        assert await reader.next() == {"event": "reset", "data": {}}


async def test_who_has_missed_too_much_is_told_to_ask_anew(
    rabbit: RabbitSettings, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_gateway(rabbit, postgres, relaying=False) as url:
        await post(url)
        cancelled = await post(url, send_at=(utc_now() + timedelta(days=1)).isoformat())
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post(f"/api/notifications/{cancelled['id']}/cancel")).status_code == 200
        async with reading(url, last_event_id="0") as (reader, _):
            assert (await reader.status())["notification_id"] == cancelled["id"]
        for limit, most in (("MAX_SCANNED", 1), ("MAX_REPLAYED", 0)):
            with monkeypatch.context() as patch:
                patch.setattr(event_history, limit, most)
                async with reading(url, last_event_id="0") as (reader, _):
                    assert await reader.next() == {"event": "reset", "data": {}}


async def test_a_stream_ends_with_its_key(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(api_keys, "CACHE_SECONDS", 0)
    keys = ApiKeyStore(engine)
    key_id, token = await keys.create("ours", "of a test", frozenset({Scope.READ}))
    async with (
        served_gateway(rabbit, postgres, settings={"auth": "on"}) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client,
        client.stream("GET", "/api/events") as answer,
    ):
        lines = answer.aiter_lines()
        async with asyncio.timeout(TIMEOUT):
            while await anext(lines) != ":":  # a heartbeat
                pass
        await keys.revoke(key_id)
        async with asyncio.timeout(TIMEOUT):
            async for line in lines:
                assert line in {":", ""}


async def test_a_stream_ends_with_its_key_however_much_there_is_to_tell(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_INTERVAL", 0)
    told: list[bytes] = []

    async def revoked() -> bool:
        return False

    async def receive() -> MutableMapping[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: MutableMapping[str, Any]) -> None:
        told.append(message.get("body", b""))

    history = EventHistory(engine)
    stream = EventStream(EventHub(NOWHERE, "gateway", history), history, EventFilter("ours"), None, revoked)
    async with asyncio.timeout(TIMEOUT):
        await stream({"type": "http", UNLIMITED: lambda: None}, receive, send)
    assert b"".join(told) == b""


async def test_no_tenant_takes_all_the_places(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "MAX_SUBSCRIBERS_PER_TENANT", 1)
    keys = {}
    for tenant in ("ours", "theirs"):
        _, token = await ApiKeyStore(engine).create(tenant, "of a test", frozenset({Scope.READ}))
        keys[tenant] = {"Authorization": f"Bearer {token}"}
    async with (
        served_gateway(rabbit, postgres, settings={"auth": "on"}) as url,
        reading(url, keys["ours"]),
        httpx.AsyncClient(base_url=url) as client,
    ):
        answer = await client.get("/api/events", headers=keys["ours"])
        assert answer.status_code == 503
        assert "Too many listen" in answer.json()["detail"]
        async with reading(url, keys["theirs"]):
            pass


async def test_who_comes_while_the_gateway_stops_is_not_kept(engine: AsyncEngine) -> None:
    live = EventHub(NOWHERE, "gateway", EventHistory(engine))
    began = asyncio.Event()

    async def listen() -> bytes | None:
        began.set()
        async with live.subscribe(EventFilter("ours"), lambda: None) as listener:
            return await listener.next()

    listening = asyncio.create_task(listen())
    await began.wait()
    live.close()
    async with asyncio.timeout(TIMEOUT):
        assert await listening is None


async def test_who_does_not_read_is_dropped_and_nobody_waits_for_it(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(event_subscriber, "MAX_WAITING_BYTES", 100_000)
    with closing(socket.socket()) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with (
            running_sender(rabbit, FakeProvider()),
            running_status_writer(rabbit, postgres),
            served_gateway(rabbit, postgres) as url,
            reading(url) as (reader, _),
            httpx.AsyncClient(base_url=url) as client,
        ):
            slow.connect((url.host, url.port))
            slow.sendall(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(20):
                await asyncio.gather(*(client.post("/api/notifications", json=BODY) for _ in range(200)))
                for _ in range(200):
                    await reader.status()
                if "does not read" in caplog.text:
                    break
            else:
                pytest.fail("it has never been dropped")
            # While the gateway goes on.
            slow.settimeout(TIMEOUT)
            with suppress(ConnectionResetError):
                while slow.recv(65536):
                    pass


async def test_a_tenant_hears_nothing_of_another(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    keys = {}
    for tenant in ("ours", "theirs"):
        _, token = await ApiKeyStore(engine).create(tenant, "of a test", frozenset({Scope.SEND, Scope.READ}))
        keys[tenant] = {"Authorization": f"Bearer {token}"}
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres, settings={"auth": "on"}) as url,
        reading(url, keys["ours"]) as (ours, _),
        reading(url, keys["theirs"]) as (theirs, _),
    ):
        foreign = await post(url, keys["theirs"])
        async with reading(url, keys["ours"], notification_id=foreign["id"]) as (guessing, _):
            assert (await theirs.status())["notification_id"] == foreign["id"]
            own = await post(url, keys["ours"])
            assert (await ours.status())["notification_id"] == own["id"]
            begin = str(int((time.time() - 60) * 1e6))
            async with reading(url, {**keys["ours"], "Last-Event-ID": begin}) as (replayed, _):
                assert (await replayed.status())["notification_id"] == own["id"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):  # all of it has happened: nothing is on its way
                    await guessing.status()


@pytest.mark.parametrize("query", ["?user_id=0", "?last_event_id=x", "?channel=fax", "?nothing=1"])
async def test_what_can_not_be_wanted_is_refused(api: httpx.AsyncClient, query: str) -> None:
    answer = await api.get(f"/api/events{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in query


async def test_a_position_is_the_time_of_the_change(rabbit: RabbitSettings, postgres: PostgresSettings) -> None:
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
        reading(url) as (reader, _),
    ):
        await post(url)
        heard = await reader.status()
    assert datetime.fromisoformat(heard["changed_at"]).timestamp() == pytest.approx(int(heard["id"]) / 1e6, abs=1e-6)
