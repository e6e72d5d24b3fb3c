"""Missed events are replayed from PostgreSQL, or the stream is reset."""

import asyncio
from datetime import timedelta

import httpx
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_common.rabbitmq import events
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import EventPublisher
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_gateway.events import feed
from notify_gateway.events import history as event_history
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, prepare_topology
from support.event_stream import post, reading
from support.fakes import CuttableNetwork, FakeProvider
from support.services import (
    TIMEOUT,
    eventually,
    running_sender,
    running_status_writer,
    served_gateway,
)
from uuid_utils.compat import uuid7


async def test_reconnecting_subscriber_gets_missed_events_from_postgresql(
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

            await eventually(sent, "both notifications are sent")
            for resume in ({"headers": {"Last-Event-ID": last["id"]}}, {"last_event_id": last["id"]}):
                async with reading(url, **resume) as (reader, _):
                    # Events close to the last one may be repeated, but they must not have changed.
                    assert (await reader.until(missed))[0] == last
                    later = await post(url, user_id=3)
                    assert (await reader.until(later))[-1]["user_id"] == 3
            later_than_all = int(utc_now().timestamp() + 60) * 1_000_000
            async with reading(url, {"Last-Event-ID": str(later_than_all)}) as (reader, _):
                latest = await post(url, user_id=4)
                assert last not in await reader.until(latest)


async def test_stream_reports_a_rabbitmq_outage_and_ends_on_recovery(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(through_network, postgres) as url,
        reading(url) as (reader, live),
    ):
        assert live
        await network.close()
        assert await reader.next() == {"event": "live", "data": {"live": False}}
        async with reading(url) as (_, live_again):
            assert not live_again
        waiting = await post(url)
        await network.open()
        # The gateway may have missed events, so it ends the stream, and the client has to reconnect.
        while (event := await reader.next()) is not None:
            assert event["event"] in {"live", "status"}
        # The client can resume although it has not read any change yet, because the stream has sent its position.
        async with reading(url, last_event_id=reader.last_id) as (returned, live_again):
            assert live_again
            assert await returned.until(waiting)
    await network.close()


async def test_stream_ends_if_its_exchange_was_deleted(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BIND_INTERVAL", 0.1)
    async with served_gateway(rabbit, postgres) as url, reading(url) as (reader, live):
        assert live
        await hand.channel.exchange_delete(topology.EVENTS.name)
        assert await reader.next() == {"event": "live", "data": {"live": False}}
        await prepare_topology(rabbit, [], [topology.EVENTS])
        while (event := await reader.next()) is not None:
            assert event["event"] == "live"


async def test_stream_is_reset_when_events_were_dropped(
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
        publisher.publish([change])  # exceeds MAX_WAITING
        async with publisher.running(), asyncio.timeout(TIMEOUT):
            assert [(await published.get()).routing_key for _ in range(2)] == ["email.sent", "dropped"]
        assert await reader.next() == {"event": "reset", "data": {}}


async def test_stream_is_reset_when_too_many_events_were_missed(
    rabbit: RabbitSettings, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_gateway(rabbit, postgres, relaying=False) as url:
        await post(url)
        cancelled = await post(url, send_at=(utc_now() + timedelta(days=1)).isoformat())
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post(f"/api/notifications/{cancelled['id']}/cancel")).status_code == 200
        async with reading(url, last_event_id="0") as (reader, _):
            assert (await reader.status())["notification_id"] == cancelled["id"]
        for limit, value in (("MAX_SCANNED", 1), ("MAX_REPLAYED", 0)):
            with monkeypatch.context() as patch:
                patch.setattr(event_history, limit, value)
                async with reading(url, last_event_id="0") as (reader, _):
                    assert await reader.next() == {"event": "reset", "data": {}}
