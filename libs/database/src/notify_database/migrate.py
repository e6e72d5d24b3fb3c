"""`notify-migrate` upgrades the schema to the newest revision while services keep working.

Several processes may run it at the same time. Each migration commits on its own, and a migration that fails because it
did not get a lock in time, or for any other reason, runs again.
"""

import asyncio
import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from notify_common.runtime.outage import Outage
from notify_common.runtime.process import run
from notify_common.runtime.settings import ServiceSettings, load_settings
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_database.engine import PostgresSettings, await_database, create_engine
from notify_database.errors import DatabaseUnavailable
from notify_database.online_schema_change import LOCK_TIMEOUT
from notify_database.partitions import make_partitions

log = logging.getLogger(__name__)

ADVISORY_LOCK = 0x6E6F74696679  # an arbitrary key that nothing else in this database uses
LOCK_CONFLICTS = frozenset({"55P03", "40P01"})  # SQLSTATE: lock_not_available, deadlock_detected
POLL_INTERVAL = 0.2  # seconds
RETRY_INTERVAL = 1.0  # seconds, so that the statements that waited behind the migration can run


class MigrationSettings(ServiceSettings, PostgresSettings):
    """The settings for `notify-migrate`."""


def alembic_config() -> Config:
    """Return Alembic's configuration; this project has no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


async def migrate(engine: AsyncEngine, schema: str, revision: str = "head") -> None:
    """Create a missing `schema` and run the pending migrations; after the newest, create missing partitions."""
    async with engine.connect() as connection:
        try:
            await _become_the_only_migrator(connection)
            await connection.execute(text("SET statement_timeout = 0"))  # an index of a large table takes long
            await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
            await connection.commit()
            await connection.run_sync(_limit_lock_waits)
            await _upgrade(connection, revision)
        finally:
            # Ending the session releases the lock and resets the settings, even after an error.
            await connection.invalidate()
    if revision == "head":
        # A lock that is not granted in time, or another process that makes partitions, only delays this.
        outage = Outage(log, "missing partitions are not created yet")
        while not await outage.retry(lambda: make_partitions(engine), DatabaseUnavailable):  # noqa: ASYNC110 - it can only be polled
            await asyncio.sleep(POLL_INTERVAL)


async def _become_the_only_migrator(connection: AsyncConnection) -> None:
    # CREATE INDEX CONCURRENTLY waits for all running statements, including one that waits for this lock.
    lock = text("SELECT pg_try_advisory_lock(:key)")
    while not (await connection.execute(lock, {"key": ADVISORY_LOCK})).scalar_one():
        await connection.commit()
        await asyncio.sleep(POLL_INTERVAL)


def _limit_lock_waits(connection: Connection) -> None:
    """Limit how long each later transaction waits for a lock.

    Statements in Alembic's `autocommit_block` are not limited: those that must run outside a transaction block nothing
    while they wait, but have to start from the beginning after a timeout.
    """

    @event.listens_for(connection, "begin")
    def set_timeout(beginning: Connection) -> None:
        if beginning.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            beginning.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")


async def _upgrade(connection: AsyncConnection, revision: str) -> None:
    """Run the pending migrations; after a lock conflict, continue with the migration that met it."""
    outage = Outage(log, "a migration did not get a lock")
    while True:
        try:
            await connection.run_sync(_run_migrations, revision)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in LOCK_CONFLICTS:
                raise
            await connection.rollback()
            outage.failed(error.orig)
            await asyncio.sleep(RETRY_INTERVAL)
        else:
            outage.ended()
            return


def _run_migrations(connection: Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def _main(settings: MigrationSettings) -> None:
    engine = create_engine(settings, pool_size=1, statement_timeout=0)
    try:
        await await_database(engine, migrated=False)
        await migrate(engine, settings.postgres_schema)
        log.info("the schema is up to date")
    finally:
        await engine.dispose()


def main() -> None:
    """Run the migrations."""
    settings = load_settings(MigrationSettings)
    run(lambda: _main(settings), settings)


if __name__ == "__main__":
    main()
