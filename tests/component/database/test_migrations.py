"""Migrations: the schema that they create, and repeated and concurrent runs."""

import asyncio

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import (
    NOT_MIGRATED,
    PostgresSettings,
    create_engine,
    database_problem,
)
from notify_database.migrate import alembic_config, migrate
from notify_database.models import Base
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import ADD_DELIVERY

CHECKS = text("""
    SELECT conrelid::regclass::text || '.' || conname, pg_get_constraintdef(pg_constraint.oid)
    FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE contype = 'c' AND connamespace = 'public'::regnamespace AND NOT relispartition
""")


async def test_migrations_create_the_schema_that_the_models_define(engine: AsyncEngine) -> None:
    def is_not_a_partition(name: str | None, *_: object) -> bool:
        return "_until_" not in (name or "")

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"include_name": is_not_a_partition})
        return list(compare_metadata(context, Base.metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrated_check_constraints_match_the_models(
    engine: AsyncEngine, empty_postgres: PostgresSettings
) -> None:
    """Compare the check constraints separately, because Alembic ignores them."""
    from_models = create_engine(empty_postgres, pool_size=1)
    async with from_models.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        expected = {row[0]: row[1] for row in await connection.execute(CHECKS)}
    await from_models.dispose()
    async with engine.connect() as connection:
        found = {row[0]: row[1] for row in await connection.execute(CHECKS)}
    assert found == expected


async def test_repeated_migration_changes_nothing(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(ADD_DELIVERY, {"notification_id": new_id(utc_now()), "delivery_id": new_id(utc_now())})
    await migrate(engine, "public")
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM notifications"))).scalar_one() == 1


async def test_concurrent_migrations_succeed(empty_postgres: PostgresSettings) -> None:
    engines = [create_engine(empty_postgres, pool_size=1) for _ in range(4)]
    await asyncio.gather(*(migrate(engine, "public") for engine in engines))
    async with engines[0].connect() as connection:
        version = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all()
    assert version == [ScriptDirectory.from_config(alembic_config()).get_current_head()]
    for engine in engines:
        await engine.dispose()


async def test_configured_schema_is_created_and_used(empty_postgres: PostgresSettings) -> None:
    engine = create_engine(empty_postgres.model_copy(update={"postgres_schema": "notify"}), pool_size=1)
    assert await database_problem(engine) == NOT_MIGRATED
    await migrate(engine, "notify")
    assert await database_problem(engine) is None
    async with engine.connect() as connection:
        tables = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'notify'"))
        assert {"notifications", "deliveries", "attempts", "outbox"} <= set(tables.scalars())
    await engine.dispose()


async def test_outdated_schema_is_reported(empty_postgres: PostgresSettings) -> None:
    engine = create_engine(empty_postgres, pool_size=1)
    newest, before, *_ = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    for revision, problem in ((before, NOT_MIGRATED), (newest, None)):
        await migrate(engine, "public", revision.revision)
        assert await database_problem(engine) == problem
    await engine.dispose()
