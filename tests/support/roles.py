"""The PostgreSQL users of the tests' servers. All have the password of the administrator, who is a superuser."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from notify_database.engine import PostgresSettings
from notify_database.migrate import MigrationSettings
from notify_local.stack import OWNER_USER, SERVICE_USERS

USERS = sorted({OWNER_USER, *SERVICE_USERS})
OWNERS = """
    SELECT DISTINCT relowner::regrole::text FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'i', 'I')
"""


def as_user(postgres: PostgresSettings, user: str) -> PostgresSettings:
    """Return the settings with another user."""
    return postgres.model_copy(update={"postgres_user": user})


def as_service(postgres: PostgresSettings, service: str) -> PostgresSettings:
    """Return the settings with the user of the service, if it has one."""
    return as_user(postgres, service) if service in SERVICE_USERS else postgres


def migration_settings(admin: PostgresSettings, **change: object) -> MigrationSettings:
    """Return the settings of a `notify-migrate` that creates the users."""
    password = admin.postgres_password
    return MigrationSettings.model_validate(
        {
            **admin.model_dump(exclude_unset=True),
            "postgres_user": OWNER_USER,
            "postgres_admin_user": admin.postgres_user,
            "postgres_admin_password": password,
            "postgres_gateway_password": password,
            "postgres_status_writer_password": password,
            **change,
        }
    )


@asynccontextmanager
async def session(postgres: PostgresSettings, user: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection, as `user` if one is given."""
    connection = await asyncpg.connect(
        host=postgres.postgres_host,
        port=postgres.postgres_port,
        user=user or postgres.postgres_user,
        password=postgres.postgres_password.get_secret_value(),
        database=postgres.postgres_database,
        server_settings={"search_path": postgres.postgres_schema},
    )
    try:
        yield connection
    finally:
        await connection.close()


async def owners(connection: asyncpg.Connection) -> set[str]:
    """Return the roles that own a table or an index in the schema."""
    return {row[0] for row in await connection.fetch(OWNERS)}
