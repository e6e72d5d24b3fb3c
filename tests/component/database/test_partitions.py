"""Weekly partitions are created in advance, and dropped once they are old and all their deliveries are final."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from notify_common.contracts.ids import first_id_at, new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import (
    PostgresSettings,
    autocommitting,
    create_engine,
    database_errors,
)
from notify_database.errors import DatabaseUnavailable
from notify_database.maintenance import PartitionMaintenance
from notify_database.migrate import migrate
from notify_database.partitions import (
    AHEAD,
    STORAGE,
    WIDTH,
    drop_partitions,
    first_end,
    gaps,
    make_partitions,
    partition_name,
    partitions_ahead,
)
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import ADD_DELIVERY, waiting_for_locks

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


async def run(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


def week_sql(table: str, end: datetime, begin: str | None = None) -> str:
    begin = begin or f"'{first_id_at(end - WIDTH)}'"
    bounds = f"FROM ({begin}) TO ('{first_id_at(end)}')"
    return f"CREATE TABLE {partition_name(table, end)} PARTITION OF {table} FOR VALUES {bounds}"


async def detach(engine: AsyncEngine, partition: str, *, interrupted: bool = False) -> None:
    table = partition.partition("_until_")[0]
    statement = text(f"ALTER TABLE {table} DETACH PARTITION {partition} CONCURRENTLY")
    async with engine.connect() as reader, autocommitting(engine).connect() as connection:
        if interrupted:
            # The detach waits for this transaction, so it is interrupted half-way.
            await reader.execute(text(f"SELECT FROM {table}"))
            await connection.execute(text("SET lock_timeout = '50ms'"))
            with pytest.raises(DBAPIError):
                await connection.execute(statement)
            await connection.execute(text("RESET lock_timeout"))
        else:
            await connection.execute(statement)


async def past_weeks(engine: AsyncEngine, number: int) -> list[datetime]:
    """Replace the first partition, which covers the past, with one that ends earlier and `number` weekly ones.

    Return the ends of the partitions, except for that of the current week.
    """
    first = first_end(utc_now())
    ends = [first - week * WIDTH for week in range(number, -1, -1)]
    for table in STORAGE:
        await run(engine, f"DROP TABLE {partition_name(table, first)}", week_sql(table, ends[0], "MINVALUE"))
        await run(engine, *(week_sql(table, end) for end in ends[1:]))
    return ends[:-1]


def test_first_partition_ends_on_a_monday_at_least_a_day_away() -> None:
    for day in range(1, 8):
        now = datetime(2026, 11, 22 + day, 23, 59, tzinfo=UTC)
        end = first_end(now)
        assert (end.weekday(), end.hour, end - now >= timedelta(days=1)) == (0, 0, True)


async def test_existing_rows_move_to_the_first_partition(empty_postgres: PostgresSettings) -> None:
    engine = create_engine(empty_postgres, pool_size=1)
    await migrate(engine, "public", "0002")
    before = await add(engine, utc_now(), "sent")
    await migrate(engine, "public")
    async with engine.connect() as connection:
        where = text("SELECT tableoid::regclass::text FROM deliveries WHERE id = :id")
        assert (await connection.execute(where, {"id": before})).scalar_one() == (
            partition_name("deliveries", first_end(utc_now()))
        )
    await engine.dispose()


def test_gaps_are_filled_with_weeks_and_shorter_pieces() -> None:
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    week = [monday + number * WIDTH for number in range(6)]
    day = timedelta(days=1)
    covered = [(week[3], week[4]), (week[0] - 3 * WIDTH, week[1]), (week[1] + day, week[2])]
    assert gaps(covered, week[0], week[4] + day) == [
        (week[1], week[1] + day), (week[2], week[3]), (week[4], week[5]),
    ]  # fmt: skip
    assert gaps([(week[0], week[4])], week[0], week[3]) == []


@pytest.mark.parametrize("missing", [0, 1, 3])
async def test_concurrent_processes_create_the_missing_weeks(engine: AsyncEngine, missing: int) -> None:
    before = {table: await partitions(engine, table) for table in STORAGE}
    for table, names in before.items():
        await run(engine, f"DROP TABLE {names[missing]}", f"DROP TABLE {names[-1]}")
        assert len(await partitions(engine, table)) == len(names) - 2
    assert True in await asyncio.gather(*(make_partitions(engine) for _ in range(3)))
    for table, names in before.items():
        assert set(names) <= set(await partitions(engine, table))
    for week in range(5):
        await add(engine, utc_now() + week * WIDTH, "pending")


async def test_migration_waits_for_a_lock_that_a_missing_week_needs(engine: AsyncEngine) -> None:
    *_, missing = await partitions(engine, "notifications")
    await run(engine, f"DROP TABLE {missing}")
    async with engine.connect() as holding:
        await holding.execute(text("LOCK TABLE notifications IN SHARE MODE"))
        migrating = asyncio.create_task(migrate(engine, "public"))
        while not await waiting_for_locks(engine):
            assert not migrating.done()
        while await waiting_for_locks(engine):
            pass
        await holding.rollback()
    await migrating
    assert missing in await partitions(engine, "notifications")


async def test_missing_partition_is_reported_as_database_unavailable(engine: AsyncEngine) -> None:
    with pytest.raises(DatabaseUnavailable), database_errors():
        await add(engine, utc_now() + 10 * AHEAD, "pending")


async def test_this_week_is_created_again_after_a_wrong_clock_has_dropped_it_and_made_later_ones(
    engine: AsyncEngine,
) -> None:
    for table in STORAGE:
        await run(engine, *(f"DROP TABLE {name}" for name in await partitions(engine, table)))
        await run(engine, week_sql(table, first_end(utc_now()) + 52 * WIDTH))
    assert await make_partitions(engine)
    for week in (0, 1, 4):
        await add(engine, utc_now() + week * WIDTH, "pending")


@pytest.mark.parametrize("interrupted", [False, True])
async def test_detached_week_that_is_not_over_is_attached_again_with_its_rows(
    engine: AsyncEngine, interrupted: bool
) -> None:
    await add(engine, utc_now(), "pending")
    await detach(engine, (await partitions(engine, "notifications"))[0], interrupted=interrupted)
    assert await count(engine, "notifications") == 0
    assert await make_partitions(engine)
    assert await count(engine, "notifications") == 1
    await add(engine, utc_now(), "pending")


@pytest.mark.parametrize("ahead", [20 * WIDTH, timedelta(seconds=61), -timedelta(seconds=61), -20 * WIDTH])
async def test_process_with_a_wrong_clock_maintains_no_partitions(engine: AsyncEngine, ahead: timedelta) -> None:
    await past_weeks(engine, 4)
    old, *_, missing = await partitions(engine, "attempts")
    await run(engine, f"DROP TABLE {missing}")
    before = await partitions(engine, "attempts")
    wrong = PartitionMaintenance(engine, 2 * WIDTH, clock=lambda: utc_now() + ahead)
    await wrong.advance()
    assert await partitions(engine, "attempts") == before
    await PartitionMaintenance(engine, 2 * WIDTH).advance()
    after = await partitions(engine, "attempts")
    assert (old in after, missing in after) == (False, True)


async def test_time_until_the_first_missing_week_is_known(engine: AsyncEngine) -> None:
    assert await partitions_ahead(engine) == AHEAD
    first, second, *_ = await partitions(engine, "attempts")
    await run(engine, f"DROP TABLE {second}")
    assert first_end(utc_now()) - utc_now() == pytest.approx(await partitions_ahead(engine), abs=timedelta(seconds=10))
    await run(engine, f"DROP TABLE {first}")
    assert await partitions_ahead(engine) == timedelta(0)


async def test_only_weeks_that_ended_before_the_retention_are_dropped(engine: AsyncEngine) -> None:
    ends = await past_weeks(engine, 4)
    hour = timedelta(hours=1)
    assert await drop_partitions(engine, utc_now() - ends[0] + hour) == []
    assert await drop_partitions(engine, utc_now() - ends[1] - hour) == ends[:2]
    # Even without any retention, a week is dropped only after its end by PostgreSQL's clock.
    assert await drop_partitions(engine, timedelta(0)) == [end for end in ends[2:] if end <= utc_now()]
    await add(engine, utc_now(), "pending")


async def test_old_partition_is_dropped_once_all_its_deliveries_are_final(engine: AsyncEngine) -> None:
    old, kept_open, young, *_ = await past_weeks(engine, 4)
    for end, status in ((old, "sent"), (kept_open, "retrying"), (young, "failed")):
        await add(engine, end - WIDTH / 2, status)
    retention = utc_now() - kept_open - timedelta(hours=1)
    assert await drop_partitions(engine, retention) == [old]
    assert await drop_partitions(engine, retention) == []
    assert (await count(engine, "notifications"), await count(engine, "deliveries")) == (2, 2)
    assert partition_name("deliveries", old) not in await partitions(engine, "deliveries")
    await run(engine, "UPDATE deliveries SET status = 'cancelled' WHERE status = 'retrying'")
    assert await drop_partitions(engine, retention) == [kept_open]
    assert await count(engine, "deliveries") == 1


async def test_partition_drop_interrupted_by_a_crash_is_completed_next_time(engine: AsyncEngine) -> None:
    [old, *_] = await past_weeks(engine, 2)
    await add(engine, old - WIDTH / 2, "sent")
    async with autocommitting(engine).connect() as connection:
        detached = partition_name("deliveries", old)
        await connection.execute(text(f"ALTER TABLE deliveries DETACH PARTITION {detached} CONCURRENTLY"))
    assert await drop_partitions(engine, utc_now() - old - timedelta(hours=1)) == [old]
    assert await count(engine, "notifications") == 0


@pytest.mark.parametrize("retention", [None, timedelta(days=365)])
@pytest.mark.parametrize("interrupted", [False, True])
async def test_interrupted_drop_is_reverted_if_the_week_is_to_be_kept(
    engine: AsyncEngine, interrupted: bool, retention: timedelta | None
) -> None:
    [old, *_] = await past_weeks(engine, 2)
    await add(engine, old - WIDTH / 2, "sent")
    await detach(engine, partition_name("notifications", old), interrupted=interrupted)
    assert await count(engine, "notifications") == 0
    assert await drop_partitions(engine, retention) == []
    assert await count(engine, "notifications") == 1


async def test_week_that_an_operator_has_detached_is_left_alone(engine: AsyncEngine) -> None:
    [old, *_] = await past_weeks(engine, 2)
    await add(engine, old - WIDTH / 2, "sent")
    for table in ("attempts", "deliveries", "notifications"):
        await detach(engine, partition_name(table, old))
    assert await drop_partitions(engine, None) == []
    assert await count(engine, "notifications") == 0


async def test_partition_with_an_unpublished_delivery_is_kept(engine: AsyncEngine) -> None:
    [old, *_] = await past_weeks(engine, 2)
    await add(engine, old - WIDTH / 2, "sent")
    await run(engine, "INSERT INTO outbox (delivery_id, due_at) SELECT id, now() FROM deliveries")
    assert await drop_partitions(engine, utc_now() - old - timedelta(hours=1)) == []


async def test_week_that_cannot_be_dropped_does_not_keep_later_ones(engine: AsyncEngine) -> None:
    first, second, *_ = await past_weeks(engine, 3)
    for end in (first, second):
        await add(engine, end - WIDTH / 2, "sent")
    await run(engine, f"CREATE VIEW of_an_operator AS TABLE {partition_name('deliveries', first)}")
    retention = utc_now() - second - timedelta(hours=1)
    with pytest.raises(DatabaseUnavailable, match="DependentObjectsStillExistError"):
        await drop_partitions(engine, retention)
    await run(engine, "DROP VIEW of_an_operator")
    assert await drop_partitions(engine, retention) == [first]
    assert await count(engine, "notifications") == 0
