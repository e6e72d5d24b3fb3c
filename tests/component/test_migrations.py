import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import (
    NOT_MIGRATED,
    PostgresSettings,
    create_engine,
    database_errors,
    database_problem,
    without_transactions,
)
from notify_database.errors import DatabaseUnavailable
from notify_database.migrate import alembic_config, migrate
from notify_database.models import Base
from notify_database.partitions import AHEAD, WIDTH, drop_partitions, first_end, make_partitions, partition_name
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

CHECKS = text("""
    SELECT conrelid::regclass::text || '.' || conname, pg_get_constraintdef(pg_constraint.oid)
    FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE contype = 'c' AND connamespace = 'public'::regnamespace AND NOT relispartition
""")
ADD = text("""
    WITH n AS (INSERT INTO notifications VALUES (:notification_id, 1, 'x', NULL, NULL, now(), 'default') RETURNING id)
    INSERT INTO deliveries SELECT CAST(:delivery_id AS uuid), id, 'telegram', NULL, 'pending', 1, 0, 0, now() FROM n
""")
PARTITIONS = text("""
    SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
    JOIN pg_class parent ON parent.oid = inhparent WHERE parent.relname = :table ORDER BY child.relname
""")


async def test_the_migrations_make_what_the_models_say(engine: AsyncEngine) -> None:
    def is_no_partition(name: str | None, *_: object) -> bool:
        return "_until_" not in (name or "")

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"include_name": is_no_partition})
        return list(compare_metadata(context, Base.metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_checks_are_those_of_the_models(engine: AsyncEngine, empty_postgres: PostgresSettings) -> None:
    """Alembic does not compare check constraints."""
    from_models = create_engine(empty_postgres, pool_size=1)
    async with from_models.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        expected = {row[0]: row[1] for row in await connection.execute(CHECKS)}
    await from_models.dispose()
    async with engine.connect() as connection:
        found = {row[0]: row[1] for row in await connection.execute(CHECKS)}
    assert found == expected


async def test_migrating_again_changes_nothing(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(ADD, {"notification_id": new_id(utc_now()), "delivery_id": new_id(utc_now())})
    await migrate(engine, "public")
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM notifications"))).scalar_one() == 1


async def test_several_may_migrate_at_once(empty_postgres: PostgresSettings) -> None:
    engines = [create_engine(empty_postgres, pool_size=1) for _ in range(4)]
    await asyncio.gather(*(migrate(engine, "public") for engine in engines))
    async with engines[0].connect() as connection:
        version = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all()
    assert version == [ScriptDirectory.from_config(alembic_config()).get_current_head()]
    for engine in engines:
        await engine.dispose()


async def test_another_schema_is_created_and_used(empty_postgres: PostgresSettings) -> None:
    engine = create_engine(empty_postgres.model_copy(update={"postgres_schema": "notify"}), pool_size=1)
    assert await database_problem(engine) == NOT_MIGRATED
    await migrate(engine, "notify")
    assert await database_problem(engine) is None
    async with engine.connect() as connection:
        tables = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'notify'"))
        assert {"notifications", "deliveries", "attempts", "outbox"} <= set(tables.scalars())
    await engine.dispose()


async def test_a_schema_without_the_newest_migration_is_not_enough(empty_postgres: PostgresSettings) -> None:
    engine = create_engine(empty_postgres, pool_size=1)
    config = alembic_config()
    newest, before, *_ = ScriptDirectory.from_config(config).walk_revisions()
    for revision, problem in ((before, NOT_MIGRATED), (newest, None)):
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade, config, revision.revision)
        assert await database_problem(engine) == problem
    await engine.dispose()


def _upgrade(connection: Connection, config: Config, revision: str) -> None:
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def add(engine: AsyncEngine, time: datetime, status: str) -> UUID:
    delivery_id = new_id(time)
    async with engine.begin() as connection:
        await connection.execute(ADD, {"notification_id": new_id(time), "delivery_id": delivery_id})
        await connection.execute(
            text("UPDATE deliveries SET status = :status WHERE id = :id"), {"status": status, "id": delivery_id}
        )
    return delivery_id


async def partitions(engine: AsyncEngine, table: str) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(PARTITIONS, {"table": table})).scalars())


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        counted: int = (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()  # noqa: S608 - ours
    return counted


def test_the_first_partition_ends_on_a_monday_that_is_at_least_a_day_away() -> None:
    for day in range(1, 8):
        now = datetime(2026, 11, 22 + day, 23, 59, tzinfo=UTC)
        end = first_end(now)
        assert (end.weekday(), end.hour, end - now >= timedelta(days=1)) == (0, 0, True)


async def test_what_was_there_before_is_in_the_first_partition(empty_postgres: PostgresSettings) -> None:
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


async def test_weeks_are_made_ahead_by_whoever_comes_first(engine: AsyncEngine) -> None:
    before = await partitions(engine, "attempts")
    later = utc_now() + 4 * WIDTH
    await asyncio.gather(*(make_partitions(engine, later) for _ in range(3)))
    for table in ("notifications", "deliveries", "attempts"):
        assert len(await partitions(engine, table)) == len(before) + 4
    await add(engine, later + AHEAD - WIDTH, "pending")


async def test_what_has_no_partition_may_be_stored_later(engine: AsyncEngine) -> None:
    with pytest.raises(DatabaseUnavailable), database_errors():
        await add(engine, utc_now() + 10 * AHEAD, "pending")


async def test_old_weeks_are_dropped_once_all_in_them_is_final(engine: AsyncEngine) -> None:
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


async def test_what_a_crash_has_left_half_dropped_is_dropped_the_next_time(engine: AsyncEngine) -> None:
    first = first_end(utc_now())
    await add(engine, first - WIDTH / 2, "sent")
    async with without_transactions(engine).connect() as connection:
        detached = partition_name("deliveries", first)
        await connection.execute(text(f"ALTER TABLE deliveries DETACH PARTITION {detached} CONCURRENTLY"))
    assert await drop_partitions(engine, first + 2 * WIDTH, 2 * WIDTH) == [first]
    assert await count(engine, "notifications") == 0


async def test_a_delivery_that_waits_for_its_publication_keeps_its_week(engine: AsyncEngine) -> None:
    first = first_end(utc_now())
    delivery_id = await add(engine, first - WIDTH / 2, "sent")
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO outbox VALUES (:id, now(), NULL, 1)"), {"id": delivery_id})
    assert await drop_partitions(engine, first + 2 * WIDTH, 2 * WIDTH) == []
