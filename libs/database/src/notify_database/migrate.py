"""`notify-migrate` upgrades the schema to the newest revision. Several processes may run it at the same time."""

import asyncio
import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from notify_common.runtime.process import run
from notify_common.runtime.settings import ServiceSettings, load_settings
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_database.engine import PostgresSettings, await_database, create_engine
from notify_database.partitions import make_partitions

log = logging.getLogger(__name__)

ADVISORY_LOCK = 0x6E6F74696679  # an arbitrary key that nothing else in this database uses
LOCK_INTERVAL = 0.2  # seconds
TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
UNLOCK = text("SELECT pg_advisory_unlock(:key)")


class MigrationSettings(ServiceSettings, PostgresSettings):
    """The settings for `notify-migrate`."""


def alembic_config() -> Config:
    """Return Alembic's configuration; this project has no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


async def migrate(engine: AsyncEngine, schema: str) -> None:
    """Create a missing `schema` and run pending migrations in one transaction, then create missing partitions."""
    async with engine.begin() as connection:
        # A concurrent process waits here and then finds nothing left to do.
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
        await connection.run_sync(_upgrade)
    while not await make_partitions(engine):  # noqa: ASYNC110 - PostgreSQL can only be polled
        await asyncio.sleep(0.2)


def _upgrade(connection: Connection) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


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
