"""A worker with several subscriptions, or with a background task that dies."""

import asyncio

import pytest
from faststream.rabbit import RabbitMessage
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.faststream_subscription import FastStreamSubscription
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.worker import Worker
from notify_database.engine import PostgresSettings
from notify_status_writer.application import create_status_writer
from notify_status_writer.settings import StatusWriterSettings
from prometheus_client import CollectorRegistry
from support.services import TIMEOUT, impossible_change
from typing_extensions import override

GRACEFUL_TIMEOUT = 2.0  # seconds; reached only if the test fails


class Meeting(FastStreamSubscription):
    """A subscription whose handlers finish only once the other subscriptions are stopping as well."""

    barrier: asyncio.Barrier
    met = False

    @override
    async def _finish(self) -> None:
        await self.barrier.wait()
        self.met = True


async def decode(message: RabbitMessage) -> bytes:
    return bytes(message.body)


async def handle(_: bytes) -> None:
    """Do nothing."""


async def test_subscriptions_are_stopped_at_the_same_time(rabbit: RabbitSettings) -> None:
    broker = create_broker(rabbit, "test")
    bindings = [topology.results(channel) for channel in Channel]
    publisher, barrier = ConfirmedPublisher(broker), asyncio.Barrier(len(bindings))
    subscriptions = [
        Meeting(
            rabbit, "test", binding.queue.name,
            decode=decode, handle=handle, prefetch=1, publisher=publisher, graceful_timeout=GRACEFUL_TIMEOUT,
        )
        for binding in bindings
    ]  # fmt: skip
    for subscription in subscriptions:
        subscription.barrier = barrier
    worker = Worker(
        topology=DeclaredTopology(rabbit, [*topology.dead_letters(), *bindings], role="test"),
        broker=broker,
        subscriptions=subscriptions,
        registry=CollectorRegistry(),
        graceful_timeout=GRACEFUL_TIMEOUT,
    )
    async with worker.running():
        pass
    assert all(subscription.met for subscription in subscriptions)


async def test_dead_publisher_of_events_ends_its_status_writer(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    settings = StatusWriterSettings.model_validate(
        {**postgres.model_dump(exclude_unset=True), **rabbit.model_dump(exclude_unset=True)}
    )
    events = EventPublisher(settings, "status_writer")
    events.publish([impossible_change()])
    with pytest.raises(AttributeError):
        async with asyncio.timeout(TIMEOUT):
            await create_status_writer(settings, events=events).work(asyncio.Event())
