"""Outbox rows, and a relay that publishes them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from faststream.rabbit import RabbitBroker
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.clock import utc_now
from notify_database.engine import ROWS_BY_KEY, PostgresSettings, create_engine
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from support.amqp import Hand, prepare_topology
from support.services import eventually, gateway_metrics

ADD = text("""
    WITH n AS (
        INSERT INTO notifications (id, user_id, message, email, created_at)
        VALUES (:notification_id, 1, 'from before', jsonb_build_object('html', CAST(:html AS text)), now())
        RETURNING id
    ),
    d AS (
        INSERT INTO deliveries
        SELECT CAST(:delivery_id AS uuid), id, :channel, '42', 'pending', 1, 0, 0, now() FROM n RETURNING *
    )
    INSERT INTO outbox (delivery_id, due_at, leased_until, round, channel)
    SELECT id, now() + CAST(:due AS interval), now() + CAST(:lease AS interval), 1,
           CASE WHEN CAST(:names_channel AS boolean) THEN channel END
    FROM d
""")


async def add_row(
    engine: AsyncEngine,
    lease: timedelta | None = None,
    due: timedelta = timedelta(0),
    *,
    channel: str = "telegram",
    names_channel: bool = True,
    html: str | None = None,
) -> UUID:
    """Commit a delivery and its outbox row, as a dead process would leave them.

    The row's lease ends after `lease`. None means that the row was never leased.
    """
    delivery_id, notification_id = new_id(utc_now()), new_id(utc_now())
    row = {
        "lease": lease, "due": due, "delivery_id": delivery_id, "notification_id": notification_id, "html": html,
        "channel": channel, "names_channel": names_channel,
    }  # fmt: skip
    async with engine.begin() as connection:
        await connection.execute(ADD, row)
    return delivery_id


async def outbox_rows(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        count: int = (await connection.execute(text("SELECT count(*) FROM outbox"))).scalar_one()
    return count


async def outbox_is_empty(engine: AsyncEngine) -> None:
    async def empty() -> bool:
        return await outbox_rows(engine) == 0

    await eventually(empty, "the outbox is empty")


async def published(hand: Hand, channel: Channel, count: int) -> list[UUID]:
    messages = [await hand.next_message(f"notifications.{channel}") for _ in range(count)]
    return [DeliveryRequested.model_validate_json(message.body).delivery_id for message in messages]


@asynccontextmanager
async def running_relay(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    publisher_class: Callable[[RabbitBroker], ConfirmedPublisher] = ConfirmedPublisher,
    outbox_class: type[OutboxStore] = OutboxStore,
) -> AsyncIterator[OutboxRelay]:
    """Run a relay; yield it once it is connected."""
    await prepare_topology(rabbit, [*topology.dead_letters(), *map(topology.deliveries, Channel)])
    broker, stop = create_broker(rabbit, "gateway"), asyncio.Event()
    engine = create_engine(postgres, pool_size=2, planner=ROWS_BY_KEY)
    relay = OutboxRelay(
        broker, publisher_class, outbox_class(engine), EventPublisher(rabbit, "gateway"), gateway_metrics()
    )
    running = asyncio.create_task(relay.run(stop))

    async def is_connected() -> bool:
        return relay.connected

    try:
        await eventually(is_connected, "the relay is connected")
        yield relay
    finally:
        stop.set()
        await running
        await broker.stop()
        await engine.dispose()
