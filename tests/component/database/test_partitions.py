"""Weekly partitions are created in advance, and dropped once they are old and all their deliveries are final."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from alembic import command
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import (
    PostgresSettings,
    autocommitting,
    create_engine,
    database_errors,
)
from notify_database.errors import DatabaseUnavailable
from notify_database.migrate import alembic_config, migrate
from notify_database.partitions import AHEAD, WIDTH, drop_partitions, first_end, make_partitions, partition_name
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import ADD_DELIVERY

PARTITIONS = text("""
    SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
    JOIN pg_class parent ON parent.oid = inhparent WHERE parent.relname = :table ORDER BY child.relname
""")


async def add(engine: AsyncEngine, time: datetime, status: str) -> UUID:
    delivery_id = new_id(time)
    async with engine.begin() as connection:
        await connection.execute(ADD_DELIVERY, {"notification_id": new_id(time), "delivery_id": delivery_id})
        await connection.execute(
            text("UPDATE deliveries SET status = :status WHERE id = :id"), {"status": status, "id": delivery_id}
        )
    return delivery_id


async def partitions(engine: AsyncEngine, table: str) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(PARTITIONS, {"table": table})).scalars())


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        counted: int = (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()  # noqa: S608 - constants
    return counted


def test_first_partition_ends_on_a_monday_at_least_a_day_away() -> None:
    for day in range(1, 8):
        now = datetime(2026, 11, 22 + day, 23, 59, tzinfo=UTC)
        end = first_end(now)
        assert (end.weekday(), end.hour, end - now >= timedelta(days=1)) == (0, 0, True)


async def test_existing_rows_move_to_the_first_partition(empty_postgres: PostgresSettings) -> None:
    engine = create_engine(empty_postgres, pool_size=1)

    def upgrade_to_0002(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")

    async with engine.begin() as connection:
        await connection.run_sync(upgrade_to_0002)
    before = await add(engine, utc_now(), "sent")
    await migrate(engine, "public")
    async with engine.connect() as connection:
        where = text("SELECT tableoid::regclass::text FROM deliveries WHERE id = :id")
        assert (await connection.execute(where, {"id": before})).scalar_one() == (
            partition_name("deliveries", first_end(utc_now()))
        )
    await engine.dispose()


async def test_concurrent_processes_create_partitions_in_advance(engine: AsyncEngine) -> None:
    before = await partitions(engine, "attempts")
    later = utc_now() + 4 * WIDTH
    await asyncio.gather(*(make_partitions(engine, later) for _ in range(3)))
    for table in ("notifications", "deliveries", "attempts"):
        assert len(await partitions(engine, table)) == len(before) + 4
    await add(engine, later + AHEAD - WIDTH, "pending")


async def test_missing_partition_is_reported_as_database_unavailable(engine: AsyncEngine) -> None:
    with pytest.raises(DatabaseUnavailable), database_errors():
        await add(engine, utc_now() + 10 * AHEAD, "pending")


async def test_old_partition_is_dropped_once_all_its_deliveries_are_final(engine: AsyncEngine) -> None:
    first = first_end(utc_now())
    kept_open, old, young = first + WIDTH / 2, first - WIDTH / 2, first + 3 * WIDTH / 2
    for time, status in ((old, "sent"), (kept_open, "retrying"), (young, "failed")):
        await add(engine, time, status)
    now = first + 7 * WIDTH / 2
    assert await drop_partitions(engine, now, 2 * WIDTH) == [first]
    assert await drop_partitions(engine, now, 2 * WIDTH) == []
    assert (await count(engine, "notifications"), await count(engine, "deliveries")) == (2, 2)
    assert partition_name("deliveries", first) not in await partitions(engine, "deliveries")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET status = 'cancelled' WHERE status = 'retrying'"))
    assert await drop_partitions(engine, now, 2 * WIDTH) == [first + WIDTH]
    assert await count(engine, "deliveries") == 1


async def test_partition_drop_interrupted_by_a_crash_is_completed_next_time(engine: AsyncEngine) -> None:
    first = first_end(utc_now())
    await add(engine, first - WIDTH / 2, "sent")
    async with autocommitting(engine).connect() as connection:
        detached = partition_name("deliveries", first)
        await connection.execute(text(f"ALTER TABLE deliveries DETACH PARTITION {detached} CONCURRENTLY"))
    assert await drop_partitions(engine, first + 2 * WIDTH, 2 * WIDTH) == [first]
    assert await count(engine, "notifications") == 0


async def test_partition_with_an_unpublished_delivery_is_kept(engine: AsyncEngine) -> None:
    first = first_end(utc_now())
    delivery_id = await add(engine, first - WIDTH / 2, "sent")
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO outbox VALUES (:id, now(), NULL, 1)"), {"id": delivery_id})
    assert await drop_partitions(engine, first + 2 * WIDTH, 2 * WIDTH) == []
