"""Tenants with many event streams leave time for others."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import EventPublisher
from notify_common.runtime.clock import utc_now
from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.events import hub as event_hub
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.hub import EventHub
from notify_gateway.events.subscriber import Subscriber
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import prepare_topology
from support.gateway import rows
from support.services import NOWHERE, TIMEOUT
from support.stored import Stored

CHANGES, SUBSCRIBERS = 2_000, 500


async def _last_of(subscriber: Subscriber, count: int) -> None:
    """Read `count` events."""
    while count > 0:
        written = await subscriber.next()
        assert written is not None
        count -= written.count(b"event: status\n")


async def _longest_step(done: asyncio.Event) -> float:
    """Return the most CPU time that passed in which no other task could run."""
    longest, last = 0.0, time.process_time()
    while not done.is_set():
        await asyncio.sleep(0)
        now = time.process_time()
        longest, last = max(longest, now - last), now
    return longest


async def test_many_events_for_many_streams_of_a_tenant_do_not_stop_other_tasks(
    rabbit: RabbitSettings, engine: AsyncEngine
) -> None:
    await prepare_topology(rabbit, [], [topology.EVENTS])
    await Stored(engine).add(Channel.EMAIL)
    [delivery] = await rows(engine, "SELECT id AS delivery_id, notification_id, channel FROM deliveries")
    change = StatusChange.model_validate(
        {**delivery._asdict(), "status": DeliveryStatus.SENT, "round": 1, "attempt": 1, "changed_at": utc_now()}
    )
    hub = EventHub(rabbit, "gateway", EventHistory(engine, TenantReads(engine, TenantShare(1))))
    publisher = EventPublisher(rabbit, "test")
    async with asyncio.timeout(TIMEOUT), publisher.running(), AsyncExitStack() as stack:
        subscribers = [
            await stack.enter_async_context(hub.subscribe(EventFilter("default"), lambda: None))
            for _ in range(SUBSCRIBERS)
        ]
        done = asyncio.Event()
        longest = asyncio.create_task(_longest_step(done))
        began = time.process_time()
        publisher.publish([change] * CHANGES)
        await asyncio.gather(*(_last_of(subscriber, CHANGES) for subscriber in subscribers))
        total = time.process_time() - began
        done.set()
        assert await longest < total / 2


async def test_streams_of_a_tenant_share_the_time_for_writing(engine: AsyncEngine) -> None:
    hub = EventHub(NOWHERE, "gateway", EventHistory(engine, TenantReads(engine, TenantShare(1))))
    pauses = [hub.pause_after_write("ours", 10.0) for _ in range(500)]
    assert pauses == sorted(set(pauses))
    assert max(pauses) == pytest.approx(500 * event_hub.WRITE_INTERVAL)
    assert hub.pause_after_write("theirs", 10.0) == pytest.approx(event_hub.WRITE_INTERVAL)
    assert hub.pause_after_write("ours", 60.0) == pytest.approx(event_hub.WRITE_INTERVAL)
