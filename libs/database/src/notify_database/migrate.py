"""`notify-migrate` upgrades the schema to the newest revision while services keep working.

With an administrator's login, it first creates the roles that the services log in with. Several processes may run it at
the same time. Each migration commits on its own, and a migration that fails because it did not get a lock in time, or
for any other reason, runs again.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from alembic import command
from alembic.config import Config
from notify_common.runtime.outage import Outage
from notify_common.runtime.process import run
from notify_common.runtime.settings import ServiceSettings, load_settings
from pydantic import Field, SecretStr, model_validator
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_database.engine import PostgresSettings, await_database, create_engine
from notify_database.errors import DatabaseUnavailable
from notify_database.migration_locks import (
    POLL_INTERVAL,
    become_the_only_migrator,
    limit_lock_waits,
    repeat_after_lock_conflicts,
)
from notify_database.partitions import make_partitions
from notify_database.rights import GATEWAY, OWNER, ROLES, STATUS_WRITER, grant_rights
from notify_database.roles import Login, set_up_roles

log = logging.getLogger(__name__)

UserName = Annotated[str, Field(pattern="^[a-z_][a-z0-9_]{0,62}$")]


class MigrationSettings(ServiceSettings, PostgresSettings):
    """The settings for `notify-migrate`. `postgres_user` is the owner's login if there is an administrator's."""

    postgres_admin_user: str | None = None
    postgres_admin_password: SecretStr | None = None
    postgres_gateway_user: UserName = "gateway"
    postgres_gateway_password: SecretStr | None = None
    postgres_status_writer_user: UserName = "status_writer"
    postgres_status_writer_password: SecretStr | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.postgres_admin_user is None:
            return self
        users = (self.postgres_user, self.postgres_gateway_user, self.postgres_status_writer_user)
        if len({*users, self.postgres_admin_user, *ROLES}) < len(users) + 1 + len(ROLES):
            raise ValueError(
                "POSTGRES_USER, POSTGRES_ADMIN_USER, POSTGRES_GATEWAY_USER and POSTGRES_STATUS_WRITER_USER: "
                f"must differ from each other and from {', '.join(ROLES)}"
            )
        return self

    def admin(self) -> PostgresSettings | None:
        """Return the connection settings of the administrator, or None if there is no such login."""
        if self.postgres_admin_user is None:
            return None
        return self.model_copy(
            update={
                "postgres_user": self.postgres_admin_user,
                "postgres_password": self.postgres_admin_password or SecretStr(""),
                "postgres_schema": "pg_catalog",
            }
        )

    def logins(self) -> Sequence[Login]:
        """Return the logins whose passwords are known; the others are left as they are."""
        known = (
            (self.postgres_user, self.postgres_password, OWNER),
            (self.postgres_gateway_user, self.postgres_gateway_password, GATEWAY),
            (self.postgres_status_writer_user, self.postgres_status_writer_password, STATUS_WRITER),
        )
        return [Login(user, password.get_secret_value(), role) for user, password, role in known if password]


def alembic_config() -> Config:
    """Return Alembic's configuration; this project has no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


async def migrate(engine: AsyncEngine, schema: str, revision: str = "head") -> None:
    """Create a missing `schema` and run the pending migrations; after the newest, grant rights and make partitions."""
    async with engine.connect() as connection:
        try:
            await become_the_only_migrator(connection)
            await connection.execute(text("SET statement_timeout = 0"))  # an index of a large table takes long
            await _create_schema(connection, schema)
            await connection.run_sync(limit_lock_waits)

            async def upgrade() -> None:
                await connection.run_sync(_run_migrations, revision)

            # After a conflict, it continues with the migration that met it.
            await repeat_after_lock_conflicts(connection, upgrade, "a migration did not get a lock")
            if revision == "head" and not await grant_rights(connection):
                log.warning("all services need the owner's login, because the other roles do not exist")
        finally:
            # Ending the session releases the lock and resets the settings, even after an error.
            await connection.invalidate()
    if revision == "head":
        # A lock that is not granted in time, or another process that makes partitions, only delays this.
        outage = Outage(log, "missing partitions are not created yet")
        while not await outage.retry(lambda: make_partitions(engine), DatabaseUnavailable):  # noqa: ASYNC110 - it can only be polled
            await asyncio.sleep(POLL_INTERVAL)


async def _create_schema(connection: AsyncConnection, schema: str) -> None:
    # The owner must not create schemas, so PostgreSQL would refuse the statement even if the schema exists.
    missing = text("SELECT to_regnamespace(:schema) IS NULL")
    if (await connection.execute(missing, {"schema": schema})).scalar_one():
        await connection.execute(text(f'CREATE SCHEMA "{schema}"'))
    await connection.commit()


def _run_migrations(connection: Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def _set_up_roles(admin: PostgresSettings, settings: MigrationSettings) -> None:
    engine = create_engine(admin, pool_size=1, statement_timeout=0)
    try:
        await await_database(engine, migrated=False)
        await set_up_roles(engine, settings.postgres_schema, settings.logins())
    finally:
        await engine.dispose()


async def prepare_database(settings: MigrationSettings) -> None:
    """Set up the roles, if there is an administrator's login, and migrate the schema as its owner."""
    if (admin := settings.admin()) is not None:
        await _set_up_roles(admin, settings)
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
    run(lambda: prepare_database(settings), settings)


if __name__ == "__main__":
    main()
