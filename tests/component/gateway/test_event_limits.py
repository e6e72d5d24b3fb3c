"""Event streams that the gateway ends or refuses."""

import asyncio
import logging
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import (
    MAX_CHANGES,
    DeliveryStatus,
    StatusChange,
    StatusChanges,
)
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import EventPublisher
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys import look_up
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.events import feed as event_feed
from notify_gateway.events import hub as event_hub
from notify_gateway.events import stream as event_stream
from notify_gateway.events import subscriber as event_subscriber
from notify_gateway.events.feed import EventFeed
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.hub import EventHub
from notify_gateway.events.stream import EventStream
from notify_gateway.http.middleware import UNLIMITED
from notify_gateway.http.principal import Scope
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import hand_on, prepare_topology
from support.event_stream import BODY, reading
from support.fakes import FakeProvider
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


async def test_stream_ends_when_its_key_is_revoked(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(look_up, "CACHE_SECONDS", 0)
    keys = ApiKeyStore(engine)
    key_id, token = await keys.create("ours", "test", frozenset({Scope.READ}))
    async with (
        served_gateway(rabbit, postgres, settings={"auth": "on"}) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client,
        client.stream("GET", "/api/events") as response,
    ):
        lines = response.aiter_lines()
        async with asyncio.timeout(TIMEOUT):
            while await anext(lines) != ":":  # a heartbeat
                pass
        await keys.revoke(key_id)
        async with asyncio.timeout(TIMEOUT):
            async for line in lines:
                assert line in {":", ""}


async def test_stream_ends_without_sending_events_to_a_revoked_key(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_INTERVAL", 0)
    sent: list[bytes] = []

    async def revoked() -> bool:
        return False

    async def receive() -> MutableMapping[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))

    history = EventHistory(engine, TenantReads(engine, TenantShare(1)))
    stream = EventStream(EventHub(NOWHERE, "gateway", history), history, EventFilter("ours"), None, revoked)
    async with asyncio.timeout(TIMEOUT):
        await stream({"type": "http", UNLIMITED: lambda: None}, receive, send)
    assert b"".join(sent) == b""


async def test_one_tenant_cannot_use_up_all_event_streams(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "MAX_SUBSCRIBERS_PER_TENANT", 1)
    keys = {}
    for tenant in ("ours", "theirs"):
        _, token = await ApiKeyStore(engine).create(tenant, "test", frozenset({Scope.READ}))
        keys[tenant] = {"Authorization": f"Bearer {token}"}
    async with (
        served_gateway(rabbit, postgres, settings={"auth": "on"}) as url,
        reading(url, keys["ours"]),
        httpx.AsyncClient(base_url=url) as client,
    ):
        response = await client.get("/api/events", headers=keys["ours"])
        assert response.status_code == 503
        assert "too many event subscribers" in response.json()["detail"]
        async with reading(url, keys["theirs"]):
            pass


async def test_stream_opened_during_shutdown_ends(engine: AsyncEngine) -> None:
    hub = EventHub(NOWHERE, "gateway", EventHistory(engine, TenantReads(engine, TenantShare(1))))
    started = asyncio.Event()

    async def listen() -> bytes | None:
        started.set()
        async with hub.subscribe(EventFilter("ours"), lambda: None) as subscriber:
            return await subscriber.next()

    subscription = asyncio.create_task(listen())
    await started.wait()
    hub.close()
    async with asyncio.timeout(TIMEOUT):
        assert await subscription is None
        # `EventSource` would not reconnect after a refusal.
        assert await listen() is None


async def test_many_changes_at_once_are_published_and_handled_in_small_parts(
    rabbit: RabbitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepare_topology(rabbit, [], [topology.EVENTS])
    monkeypatch.setattr(event_feed, "MAX_BATCH_BYTES", 1)
    change = StatusChange(
        delivery_id=uuid7(), notification_id=uuid7(), channel=Channel.EMAIL, status=DeliveryStatus.SENT, round=1,
        attempt=1, changed_at=utc_now(),
    )  # fmt: skip
    connected, complete, batches = asyncio.Event(), asyncio.Event(), list[int]()

    async def receive(changes: Sequence[StatusChange]) -> None:
        batches.append(len(changes))
        if sum(batches) == 1_200:
            complete.set()

    feed = EventFeed(rabbit, "test", receive, connected=connected.set, lost=connected.clear, missed=connected.clear)
    feeding = asyncio.create_task(feed.run())
    publisher = EventPublisher(rabbit, "test")
    async with asyncio.timeout(TIMEOUT), publisher.running():
        await connected.wait()
        publisher.publish([change] * 1_200)
        await complete.wait()
    feeding.cancel()
    await asyncio.wait({feeding})
    assert batches == [500, 500, 200]


async def test_events_that_no_service_publishes_are_not_read(
    rabbit: RabbitSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepare_topology(rabbit, [], [topology.EVENTS])
    # RabbitMQ refuses a message that is too long for the feed, unless it has other settings than ours.
    monkeypatch.setattr(event_feed, "MAX_CHANGES_BYTES", 500_000)
    change = StatusChange(
        delivery_id=uuid7(), notification_id=uuid7(), channel=Channel.EMAIL, status=DeliveryStatus.SENT, round=1,
        attempt=1, changed_at=utc_now(),
    )  # fmt: skip
    item = change.model_dump_json()
    connected, complete, received, missed = asyncio.Event(), asyncio.Event(), list[StatusChange](), list[bool]()

    async def receive(changes: Sequence[StatusChange]) -> None:
        received.extend(changes)
        if changes:
            complete.set()

    feed = EventFeed(
        rabbit, "test", receive, connected=connected.set, lost=connected.clear, missed=lambda: missed.append(True)
    )
    feeding = asyncio.create_task(feed.run())
    async with asyncio.timeout(TIMEOUT), hand_on(rabbit) as hand:
        await connected.wait()
        for forged in (
            f'{{"version":1,"changes":[{",".join([item] * (MAX_CHANGES + 1))}]}}',
            f'{{"version":1,"changes":[{item}]}}'.ljust(500_001),
            f'{{"version":1,"changes":[{",".join(["0"] * MAX_CHANGES)}]}}',
        ):
            await hand.publish(topology.EVENTS.name, "email.sent", forged)
        await hand.publish(topology.EVENTS.name, "email.sent", StatusChanges(changes=(change,)).model_dump_json())
        await complete.wait()
    feeding.cancel()
    await asyncio.wait({feeding})
    assert received == [change]
    assert missed
    warnings = [record.getMessage() for record in caplog.records if record.name == event_feed.__name__]
    assert warnings == ["received an unreadable event message"] * 3


async def test_event_queue_is_limited_by_messages_and_bytes(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async def limited() -> bool:
        # The management API takes a few seconds to show a new queue.
        with servers.management() as management:
            queues = management.get(f"/api/queues/{rabbit.rabbitmq_vhost}").raise_for_status().json()
        limits = [queue["arguments"] for queue in queues if queue["name"].startswith("notifications.events.gateway.")]
        return limits == [{"x-max-length": 10_000, "x-max-length-bytes": 64 * 2**20}]

    async with served_gateway(rabbit, postgres) as url, reading(url):
        await eventually(limited, "the gateway's event queue is limited")


async def test_slow_subscriber_is_dropped_and_does_not_delay_others(
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
            httpx.AsyncClient(base_url=url, timeout=None) as client,  # noqa: S113 - a busy machine may be slow
        ):
            slow.connect((url.host, url.port))
            slow.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for _ in range(20):
                await asyncio.gather(*(client.post("/api/notifications", json=BODY) for _ in range(200)))
                for _ in range(200):
                    await reader.status()
                if "reads too slowly" in caplog.text:
                    break
            else:
                pytest.fail("the subscriber was never dropped")
            # The gateway still runs, but it has closed this connection.
            slow.settimeout(TIMEOUT)
            with suppress(ConnectionResetError):
                while slow.recv(65536):
                    pass
