"""`python -m support.crashes POINT`: a process that works up to one point and dies there, as if by `kill -9`."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.errors import PublishFailed
from notify_common.rabbitmq.connection import create_broker
from notify_common.rabbitmq.consumer import Consumer, Message
from notify_common.rabbitmq.declaration import prepare_topology
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.runtime.settings import load_settings
from notify_common.sending.metrics import SenderMetrics
from notify_common.sending.retry_schedule import RetrySchedule
from notify_common.sending.sender import Sender
from notify_database.engine import create_engine
from notify_gateway.cli import OperatorSettings
from notify_gateway.deliveries.retries import RETRY_CHUNK, DeliveryRetries
from notify_gateway.notifications.intake import NotificationIntake
from notify_gateway.notifications.new_notification import new_notification
from notify_gateway.notifications.schemas import NotificationRequest
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import ResultStore
from notify_status_writer.results_writer import ResultsWriter
from prometheus_client import CollectorRegistry
from typing_extensions import override

from support.amqp import hand_on
from support.fakes import FakeProvider
from support.services import FIRST_DELAY, eventually, gateway_metrics


def die() -> None:
    """No handler, no finally, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


class RelayThatDiesBeforeTheHandOver(OutboxRelay):
    @override
    def has_room_for(self, count: int) -> bool:
        return True

    @override
    def hand_over(self, requests: Sequence[DeliveryRequested], lease_began: float) -> None:
        die()


class RelayThatTakesFromTheTable(OutboxRelay):
    @override
    def has_room_for(self, count: int) -> bool:
        return False


class PublisherThatDiesBeforeTheConfirm(ConfirmedPublisher):
    @override
    async def publish(self, messages: Sequence[OutgoingMessage]) -> list[PublishFailed | None]:
        publishing = asyncio.create_task(super().publish(messages))
        async with hand_on(load_settings(OperatorSettings)) as hand:

            async def arrived() -> bool:
                return await hand.depth("notifications.telegram") == 1

            await eventually(arrived, "the broker has it")
        die()
        return await publishing


class DyingOutbox(OutboxStore):
    """Dies where the confirmed rows are to be deleted."""

    @override
    async def delete(self, held: Sequence[DeliveryRequested]) -> None:
        die()


async def gateway(
    relay_class: type[OutboxRelay] = RelayThatTakesFromTheTable,
    outbox_class: type[OutboxStore] = OutboxStore,
    publisher_class: type[ConfirmedPublisher] = ConfirmedPublisher,
) -> None:
    """Accept one notification, then relay."""
    settings = load_settings(OperatorSettings)
    await prepare_topology(settings, [*topology.dead_letters(), *map(topology.deliveries, Channel)])
    engine, broker = create_engine(settings, pool_size=2), create_broker(settings, "gateway")
    events, metrics = EventPublisher(settings, "gateway"), gateway_metrics()
    relay = relay_class(broker, publisher_class(broker), outbox_class(engine), events, metrics)
    request = NotificationRequest(user_id=1, message="x", type=Channel.TELEGRAM)
    intake = NotificationIntake(engine, relay, max_waiting=10, metrics=metrics)
    await intake.accept(new_notification(request, "default"))
    await relay.run(asyncio.Event())


async def sender(*, dies_in_the_call: bool) -> None:
    """Send one delivery."""

    async def send(_: DeliveryRequested) -> str:
        if dies_in_the_call:
            die()
        return "sent"

    settings = load_settings(OperatorSettings)
    broker, schedule = create_broker(settings, "sender"), RetrySchedule(first_delay=FIRST_DELAY, max_attempts=3)
    publisher = ConfirmedPublisher(broker)
    working = Sender(
        publisher,
        channel=Channel.TELEGRAM,
        provider=FakeProvider(send),
        provider_timeout=5.0,
        schedule=schedule,
        metrics=SenderMetrics(CollectorRegistry(), Channel.TELEGRAM),
    )

    async def handle(message: Message) -> None:
        await working.handle(message)
        die()  # the result is confirmed, the message is not acked

    deliveries = topology.deliveries(Channel.TELEGRAM)
    consumer = Consumer(broker, publisher, deliveries.queue.name, handle, prefetch=1)
    await prepare_topology(settings, [*topology.dead_letters(), topology.results(), deliveries])
    await broker.connect()
    async with consumer.consuming(0):
        await asyncio.Event().wait()


async def status_writer() -> None:
    """Write one result."""
    settings = load_settings(OperatorSettings)
    broker, engine = create_broker(settings, "status_writer"), create_engine(settings, pool_size=1)
    publisher = ConfirmedPublisher(broker)
    results_consumer = ResultsWriter(
        publisher,
        ResultStore(engine),
        EventPublisher(settings, "status_writer"),
        StatusWriterMetrics(CollectorRegistry()),
    )

    async def handle(message: Message) -> None:
        await results_consumer.handle(message)
        die()  # the transaction is committed, the message is not acked

    results = topology.results()
    consumer = Consumer(broker, publisher, results.queue.name, handle, prefetch=1)
    await prepare_topology(settings, [*topology.dead_letters(), results], [topology.EVENTS])
    await broker.connect()
    async with consumer.consuming(0):
        await asyncio.Event().wait()


async def retry() -> None:
    """Do one part of a retry of many, and die in the next one."""
    engine = create_engine(load_settings(OperatorSettings), pool_size=2)
    await DeliveryRetries(engine, chunk_size=10).advance()
    async with engine.begin() as connection:
        await connection.execute(RETRY_CHUNK, {"size": 10})
        die()


# Of one delivery's way through the services.
POINTS = {
    "between commit and hand-over": lambda: gateway(RelayThatDiesBeforeTheHandOver),
    "between publish and confirm": lambda: gateway(publisher_class=PublisherThatDiesBeforeTheConfirm),
    "between confirm and outbox delete": lambda: gateway(outbox_class=DyingOutbox),
    "between provider call and result": lambda: sender(dies_in_the_call=True),
    "between result and ack": lambda: sender(dies_in_the_call=False),
    "between SQL commit and ack": status_writer,
}


if __name__ == "__main__":
    asyncio.run({**POINTS, "within a part of a retry": retry}[sys.argv[1]]())
