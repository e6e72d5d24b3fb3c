"""Every migration runs while services read and write, and can be repeated after an interruption."""

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, autocommitting, create_engine
from notify_database.migrate import alembic_config, migrate, prepare_database
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from support.roles import migration_settings
from support.servers import PROJECT
from support.services import eventually

STORED = 50_000  # deliveries, so that building an index takes a while
STATEMENT_TIMEOUT = 5.0  # seconds
CLIENTS = 2  # of each kind
PACE = 0.01  # seconds between two statements of a client

FILL = f"""
    WITH numbers AS (
        SELECT CAST('018f0000-0000-7000-8000-' || lpad(to_hex(number), 12, '0') AS uuid) AS id
        FROM generate_series(1, {STORED}) AS number
    ), n AS (
        INSERT INTO notifications (id, user_id, message, created_at) SELECT id, 1, 'x', now() FROM numbers
    )
    INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
    SELECT id, id, 'telegram', 'sent', 1, 1, 0, now() FROM numbers
"""  # noqa: S608 - a constant
# These statements lock the tables in the same order as those of the services, and are valid at every revision.
ACCEPT = text("""
    WITH n AS (
        INSERT INTO notifications (id, user_id, message, created_at) VALUES (:id, 1, 'x', now())
    ), d AS (
        INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
        VALUES (:id, :id, 'telegram', 'pending', 1, 0, 0, now())
    )
    INSERT INTO outbox (delivery_id, due_at) VALUES (:id, now())
""")
TAKE = text("""
    WITH due AS (
        SELECT delivery_id FROM outbox ORDER BY due_at LIMIT 100 FOR UPDATE SKIP LOCKED
    ), candidates AS MATERIALIZED (
        SELECT d.id FROM due
        JOIN deliveries d ON d.id = due.delivery_id JOIN notifications n ON n.id = d.notification_id
    )
    DELETE FROM outbox USING candidates WHERE outbox.delivery_id = candidates.id
""")
LOCK = text("SELECT id, status, attempt FROM deliveries WHERE id = :id FOR NO KEY UPDATE")
WRITE = text("""
    WITH changed AS (
        UPDATE deliveries SET status = 'sent', attempt = attempt + 1, updated_at = now() WHERE id = :id
    )
    INSERT INTO attempts (delivery_id, attempt, round, outcome, started_at, finished_at)
    VALUES (:id, (SELECT count(*) + 1 FROM attempts WHERE delivery_id = :id), 1, 'sent', now(), now())
""")
READ = text("""
    SELECT d.id, d.status, n.message FROM deliveries d JOIN notifications n ON n.id = d.notification_id
    WHERE d.id = :id
""")

Client = Callable[[AsyncEngine], Awaitable[None]]


async def accept(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(ACCEPT, {"id": new_id(utc_now())})


async def relay(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(TAKE)


async def write_result(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        existing = {"id": "018f0000-0000-7000-8000-000000000001"}
        await connection.execute(LOCK, existing)
        await connection.execute(WRITE, existing)


async def read(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(READ, {"id": "018f0000-0000-7000-8000-000000000002"})


class Load:
    """Clients that repeat their statements until one of them fails or the test ends."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._rounds: dict[Client, int] = dict.fromkeys((accept, relay, write_result, read), 0)
        self.tasks = [asyncio.create_task(self._repeat(client)) for client in self._rounds for _ in range(CLIENTS)]

    async def _repeat(self, client: Client) -> None:
        while True:
            await client(self._engine)
            self._rounds[client] += 1
            await asyncio.sleep(PACE)

    async def goes_on(self) -> None:
        """Return once each client has succeeded again; raise the error of one that failed."""
        before = dict(self._rounds)

        async def all_succeeded() -> bool:
            for task in self.tasks:
                if task.done():
                    task.result()
            return all(self._rounds[client] > rounds + CLIENTS for client, rounds in before.items())

        await eventually(all_succeeded, "every client has succeeded again")


@asynccontextmanager
async def load(postgres: PostgresSettings) -> AsyncIterator[Load]:
    engine = create_engine(postgres, pool_size=4 * CLIENTS, statement_timeout=STATEMENT_TIMEOUT)
    running = Load(engine)
    try:
        yield running
    finally:
        for task in running.tasks:
            task.cancel()
        await asyncio.wait(running.tasks)
        await engine.dispose()


@asynccontextmanager
async def migrated(postgres: PostgresSettings, revision: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine for a database with many rows at `revision`."""
    engine = create_engine(postgres, pool_size=3)
    await migrate(engine, "public", revision)
    async with engine.begin() as connection:
        await connection.execute(text(FILL))
    yield engine
    await engine.dispose()


async def test_each_migration_runs_under_load(empty_postgres: PostgresSettings) -> None:
    revisions = [each.revision for each in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    async with migrated(empty_postgres, "0001") as engine, load(empty_postgres) as clients:
        for revision in reversed(revisions):
            await clients.goes_on()
            await migrate(engine, "public", revision)
        await clients.goes_on()


@pytest.mark.parametrize("revision", ["0003", "0005", "0008"])
async def test_all_pending_migrations_run_under_load(empty_postgres: PostgresSettings, revision: str) -> None:
    async with migrated(empty_postgres, revision) as engine, load(empty_postgres) as clients:
        await clients.goes_on()
        await migrate(engine, "public")
        await clients.goes_on()


async def test_tables_are_handed_over_to_their_owner_under_load(empty_postgres: PostgresSettings) -> None:
    async with migrated(empty_postgres, "head"), load(empty_postgres) as clients:
        await clients.goes_on()
        await prepare_database(migration_settings(empty_postgres))
        await clients.goes_on()


async def test_migration_waits_for_a_lock_without_blocking_others_for_long(
    empty_postgres: PostgresSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async def gave_up() -> bool:
        return "a migration did not get a lock" in caplog.text

    async with migrated(empty_postgres, "0010") as engine, load(empty_postgres) as clients:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT count(*) FROM notifications"))
            migrating = asyncio.create_task(migrate(engine, "public"))
            await eventually(gave_up, "the migration gives up")
            await clients.goes_on()
            assert not migrating.done()
        await migrating
        await clients.goes_on()


async def test_interrupted_index_build_is_repeated(empty_postgres: PostgresSettings) -> None:
    index = "deliveries_updated_at_idx"
    async with migrated(empty_postgres, "0008") as engine:
        async with engine.connect() as reader, autocommitting(engine).connect() as connection:
            version = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
            if version < 160_000:
                pytest.skip("PostgreSQL 15 does not get this index")
            [partition, *_] = (
                await connection.execute(
                    text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'deliveries'::regclass")
                )
            ).scalars()
            await connection.execute(text(f"CREATE INDEX {index} ON ONLY deliveries USING brin (updated_at)"))
            # The build waits for this transaction, so it is interrupted half-way.
            await reader.execute(text("UPDATE deliveries SET updated_at = now() WHERE attempt = 1"))
            await connection.execute(text("SET lock_timeout = '50ms'"))
            build = f"CREATE INDEX CONCURRENTLY {partition}_updated_at_idx ON {partition} USING brin (updated_at)"
            with pytest.raises(DBAPIError):
                await connection.execute(text(build))
        await migrate(engine, "public")
        async with engine.connect() as connection:
            invalid = await connection.execute(text("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid"))
            assert invalid.scalars().all() == []


SCHEMA = """
    SELECT 'relation', oid::regclass::text, relkind::text, concat(relpartbound IS NOT NULL, reloptions),
           pg_get_expr(relpartbound, oid)
    FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'column', attrelid::regclass::text, concat(attnum, attname),
           concat(attnotnull, format_type(atttypid, atttypmod)), pg_get_expr(adbin, adrelid)
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, concat(convalidated, conislocal, coninhcount, connoinherit),
           pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index', indrelid::regclass::text, indexrelid::regclass::text, concat(indisvalid, indisready, indisunique),
           pg_get_indexdef(indexrelid)
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'child', inhrelid::regclass::text, inhparent::regclass::text, inhseqno::text, NULL
    FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE relnamespace = 'public'::regnamespace
    ORDER BY 1, 2, 3, 4, 5
"""


async def schema(connection: AsyncConnection) -> list[tuple[str, ...]]:
    return [tuple(row) for row in await connection.execute(text(SCHEMA))]


def run_old_migrations(connection: Connection, folder: Path, revision: str) -> None:
    baseline = (PROJECT / "tests/upgrade_baseline").read_text().splitlines()[-1]
    migrations = "libs/database/src/notify_database/migrations"
    archive = subprocess.run(  # noqa: S603 - constants
        ["git", "archive", baseline, migrations], cwd=PROJECT, capture_output=True, check=True  # noqa: S607 - found by PATH
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as archived:
        archived.extractall(folder, filter="data")
    config = Config()
    config.set_main_option("script_location", os.fspath(folder / migrations))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def test_edited_migrations_create_the_same_schema_as_before(
    empty_postgres: PostgresSettings, tmp_path: Path
) -> None:
    engine = create_engine(empty_postgres, pool_size=2)
    async with engine.connect() as connection:
        await connection.run_sync(run_old_migrations, tmp_path, "0011")
        before = await schema(connection)
        await connection.rollback()
    await migrate(engine, "public", "0011")
    async with engine.connect() as connection:
        assert await schema(connection) == before
    await engine.dispose()
