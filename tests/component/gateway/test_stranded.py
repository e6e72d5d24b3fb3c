"""Deliveries that are neither in the outbox nor in RabbitMQ are found and sent."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import DeliveryResult, DeliveryStatus, Outcome, StatusChange
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, create_engine
from notify_database.errors import StatementTimedOut
from notify_database.partitions import drop_partitions, first_end
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.outbox.store import OutboxStore
from notify_status_writer.delivery_state import Reported
from notify_status_writer.result_store import ResultStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import ADD_DELIVERY, slow_down_outbox
from support.fakes import FakeProvider
from support.gateway import all_channels_idle, rows
from support.services import eventually, running_gateway, running_sender, running_status_writer

SILENCE = timedelta(hours=1)
LONG_AGO = 2 * SILENCE
MAKE_OLD = text("UPDATE deliveries SET status = :status, updated_at = now() - CAST(:age AS interval) WHERE id = :id")
QUEUE = "INSERT INTO outbox SELECT id, now() + interval '1 day', NULL, round FROM deliveries WHERE id = :id"

SCHEDULE = """
    UPDATE notifications SET send_at = now() - interval '1 minute'
    WHERE id = (SELECT notification_id FROM deliveries WHERE id = :id)
"""


async def add(
    engine: AsyncEngine, status: str = "pending", age: timedelta = LONG_AGO, *further_statements: str
) -> UUID:
    """Store a delivery that was accepted long ago and last updated `age` ago, without an outbox row."""
    accepted_at = utc_now() - LONG_AGO
    delivery_id = new_id(accepted_at)
    async with engine.begin() as connection:
        await connection.execute(ADD_DELIVERY, {"notification_id": new_id(accepted_at), "delivery_id": delivery_id})
        await connection.execute(MAKE_OLD, {"id": delivery_id, "status": status, "age": age})
        for statement in further_statements:
            await connection.execute(text(statement), {"id": delivery_id})
    return delivery_id


async def repaired_in_a_pass(engine: AsyncEngine, *, chunk_size: int = 100) -> list[StatusChange]:
    """Search all deliveries, and return the changes of those that were repaired."""
    repaired: list[StatusChange] = []
    stranded = StrandedDeliveries(
        engine, repaired.extend, lambda _: None, all_channels_idle, silence=SILENCE, chunk_size=chunk_size
    )
    while await stranded.repair_chunk():
        pass
    return repaired


async def test_stranded_delivery_is_sent_and_its_partition_is_dropped(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    await add(engine, "retrying")
    end = first_end(utc_now())
    provider = FakeProvider()
    assert await drop_partitions(engine, utc_now() - end) == []
    async with (
        running_sender(rabbit, provider),
        running_status_writer(rabbit, postgres),
        running_gateway(rabbit, postgres, repair_after=SILENCE.total_seconds()),
    ):

        async def is_in_the_outbox() -> bool:
            return bool(await rows(engine, "SELECT 1 FROM outbox WHERE due_at > now()"))

        async def is_sent() -> bool:
            return bool(await rows(engine, "SELECT 1 FROM deliveries WHERE status = 'sent'"))

        await eventually(is_in_the_outbox, "the delivery is back in the outbox, but not due yet")
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE outbox SET due_at = now()"))  # as if the time had passed
        await eventually(is_sent, "the delivery is sent")
    assert len(provider.calls) == 1
    assert await rows(engine, "SELECT 1 FROM outbox") == []
    assert await drop_partitions(engine, utc_now() - end) == [end]


async def test_delivery_that_may_wait_for_stopped_senders_is_not_published_again(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    waiting = await add(engine)
    lost = await add(engine, "pending", LONG_AGO, "UPDATE deliveries SET channel = 'email' WHERE id = :id")
    async with (
        running_sender(rabbit, FakeProvider(), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        running_gateway(rabbit, postgres, repair_after=SILENCE.total_seconds()),
    ):

        async def is_searched() -> bool:
            return bool(await rows(engine, "SELECT 1 FROM outbox"))

        await eventually(is_searched, "a delivery is in the outbox")
        repaired = [row.delivery_id for row in await rows(engine, "SELECT delivery_id FROM outbox")]
        assert (lost in repaired, waiting in repaired) == (True, False)


async def test_delivery_that_may_still_be_sent_or_is_final_is_left_alone(engine: AsyncEngine) -> None:
    await add(engine, "pending", timedelta(minutes=1))
    await add(engine, "retrying", timedelta(minutes=1))
    await add(engine, "pending", LONG_AGO, QUEUE)
    await add(engine, "pending", LONG_AGO, SCHEDULE)
    await add(engine, "pending", LONG_AGO, "UPDATE deliveries SET channel = 'pager' WHERE id = :id")
    for status in DeliveryStatus:
        if status.final:
            await add(engine, status)
    state = "SELECT d.*, o.* FROM deliveries d LEFT JOIN outbox o ON o.delivery_id = d.id ORDER BY d.id"
    before = await rows(engine, state)
    assert await repaired_in_a_pass(engine) == []
    assert await rows(engine, state) == before


async def test_every_stranded_delivery_is_repaired_once_by_concurrent_gateways(engine: AsyncEngine) -> None:
    added = [await add(engine) for _ in range(11)]
    passes = await asyncio.gather(*(repaired_in_a_pass(engine, chunk_size=3) for _ in range(3)))
    assert sorted(change.delivery_id for repaired in passes for change in repaired) == sorted(added)
    assert [row.delivery_id for row in await rows(engine, "SELECT delivery_id FROM outbox ORDER BY 1")] == added
    assert await repaired_in_a_pass(engine) == []


async def test_search_begins_with_the_newest_deliveries(engine: AsyncEngine) -> None:
    """A gateway that is restarted often may never reach the oldest ones."""
    _old, new = [await add(engine) for _ in range(2)]
    repaired: list[StatusChange] = []
    stranded = StrandedDeliveries(
        engine, repaired.extend, lambda _: None, all_channels_idle, silence=SILENCE, chunk_size=1
    )
    assert await stranded.repair_chunk()
    assert [change.delivery_id for change in repaired] == [new]


async def test_search_whose_chunk_takes_too_long_goes_on_in_smaller_ones(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    for _ in range(40):
        await add(engine)
    await slow_down_outbox(engine)
    impatient = create_engine(postgres, pool_size=1, statement_timeout=0.4)
    repaired: list[StatusChange] = []
    stranded = StrandedDeliveries(
        impatient, repaired.extend, lambda _: None, all_channels_idle, silence=SILENCE, chunk_size=40
    )
    for _ in range(25):
        with suppress(StatementTimedOut):
            await stranded.repair_chunk()
    await impatient.dispose()
    assert len(repaired) == 40


async def test_delivery_whose_result_is_being_written_is_left_alone(engine: AsyncEngine) -> None:
    await add(engine)
    async with engine.begin() as writing:
        await writing.execute(text("SELECT FROM deliveries FOR NO KEY UPDATE"))
        assert await repaired_in_a_pass(engine) == []
        await writing.execute(text("UPDATE deliveries SET status = 'sent', updated_at = now()"))
    assert await repaired_in_a_pass(engine) == []


async def test_result_that_arrives_after_the_repair_counts_and_nothing_is_published(engine: AsyncEngine) -> None:
    delivery_id = await add(engine)
    [change] = await repaired_in_a_pass(engine)
    assert (change.delivery_id, change.round) == (delivery_id, 1)
    now = utc_now()
    late = DeliveryResult(
        delivery_id=delivery_id, round=1, attempt=1, failures=0, outcome=Outcome.SENT, started_at=now, finished_at=now
    )
    await ResultStore(engine).apply([Reported(late, None)])
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE outbox SET due_at = now()"))
    due = await OutboxStore(engine).take_due(10)
    assert (list(due.held), list(due.ended)) == ([], [])
    assert await rows(engine, "SELECT 1 FROM outbox") == []
    assert [row.status for row in await rows(engine, "SELECT status FROM deliveries")] == ["sent"]
