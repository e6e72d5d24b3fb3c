import asyncio

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from notify_database.engine import NOT_MIGRATED, PostgresSettings, create_engine, database_problem
from notify_database.migrate import alembic_config, migrate
from notify_database.models import Base
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

CHECKS = text("""
    SELECT conrelid::regclass::text || '.' || conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace
""")


async def test_the_migrations_make_what_the_models_say(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

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
        await connection.execute(
            text("INSERT INTO notifications VALUES (gen_random_uuid(), 1, 'x', NULL, NULL, now(), 'default')")
        )
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
