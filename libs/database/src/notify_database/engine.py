"""Connections to PostgreSQL."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import asyncpg
from notify_common.errors import StartupError
from notify_common.runtime.outage import Outage
from notify_common.runtime.settings import EnvironmentSettings
from pydantic import Field, SecretStr
from sqlalchemy import URL, CursorResult, ExceptionContext, Executable, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from notify_database.errors import DatabaseUnavailable, DataRejected, LoginRejected, StatementTimedOut

log = logging.getLogger(__name__)

MINIMUM_VERSION = 15
CONNECT_TIMEOUT = 5.0  # seconds
# A session that hangs in a transaction or waits for a lock must not block other sessions forever.
STATEMENT_TIMEOUT = 30.0  # seconds
IDLE_IN_TRANSACTION_TIMEOUT = 10.0  # seconds
# If PostgreSQL has not ended a statement this long after its timeout, its host has vanished. Without this limit,
# statements would wait until TCP gives up, which takes a quarter of an hour.
ANSWER_TIME = 5.0  # seconds
# Planner settings for clients that look up rows only by key. PostgreSQL may keep a prepared statement's plan forever,
# and a plan made while a table was empty would scan the whole table for every batch of results.
ROWS_BY_KEY = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
NOT_MIGRATED = "the schema is missing or older than this service: run notify-migrate"
# This query returns true once the newest migration has run.
MIGRATED = text(
    "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('notifications') AND attname = 'test')"
)
POOL_TIMEOUT = 5.0  # seconds a request waits for a connection

# SQLSTATE classes (PostgreSQL documentation, appendix A): data exception, integrity constraint violation, program
# limit exceeded. A statement that fails with one of these will fail every time.
REJECTION_CLASSES = frozenset({"22", "23", "54"})
LOGIN_CLASSES = frozenset({"28", "3D"})  # invalid authorization, invalid catalog (database) name


class PostgresSettings(EnvironmentSettings):
    """The settings for connecting to PostgreSQL."""

    postgres_host: str = "localhost"
    postgres_port: int = Field(5432, ge=1, le=65535)
    postgres_database: str = "notifications"
    postgres_user: str = "postgres"
    postgres_password: SecretStr = SecretStr("postgres")
    postgres_schema: Annotated[str, Field(pattern="^[a-z_][a-z0-9_]{0,62}$")] = "public"


def create_engine(
    settings: PostgresSettings,
    *,
    pool_size: int,
    statement_timeout: float = STATEMENT_TIMEOUT,
    planner: Mapping[str, str] | None = None,
) -> AsyncEngine:
    """Return an asyncpg engine with at most `pool_size` connections.

    `statement_timeout` is in seconds; 0 means that a statement may take any time. `planner`
    overrides settings of PostgreSQL's query planner.
    """
    url = URL.create(
        "postgresql+asyncpg",
        settings.postgres_user,
        settings.postgres_password.get_secret_value(),
        settings.postgres_host,
        settings.postgres_port,
        settings.postgres_database,
    )
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        # Parameters contain messages and recipients, which must not appear in errors.
        hide_parameters=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT,
            "command_timeout": statement_timeout + ANSWER_TIME if statement_timeout else None,
            # For short statements, JIT compilation costs more than it saves.
            "server_settings": {
                "search_path": settings.postgres_schema,
                "jit": "off",
                "timezone": "UTC",
                "statement_timeout": f"{statement_timeout * 1000:.0f}ms",
                "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT:.0f}s",
                **(planner or {}),
            },
        },
    )
    event.listen(engine.sync_engine, "handle_error", _discard_after_timeout)
    return engine


def _discard_after_timeout(context: ExceptionContext) -> None:
    """Close a connection that did not respond; asyncpg would first wait until its statement is cancelled."""
    if isinstance(context.original_exception, TimeoutError) and context.connection is not None:
        driver_connection = context.connection.connection.driver_connection
        if driver_connection is not None:
            driver_connection.terminate()
        context.is_disconnect = True


def autocommitting(engine: AsyncEngine) -> AsyncEngine:
    """Return a copy of `engine` in which each statement commits itself, in one round trip; `begin()` has no effect."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate driver and connection pool errors into `DatabaseUnavailable` or `DataRejected`."""
    try:
        yield
    except DBAPIError as error:
        driver_error = error.orig.__cause__ if error.orig else None
        raise _translated(driver_error or error) from error
    except (PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise _translated(error) from error


async def execute(engine: AsyncEngine, statement: Executable, **parameters: object) -> CursorResult[Any]:
    """Execute one statement and commit it; raise `DatabaseUnavailable` or `DataRejected` on failure."""
    with database_errors():
        async with engine.begin() as connection:
            return await connection.execute(statement, parameters)


def _translated(error: BaseException) -> DatabaseUnavailable | DataRejected:
    sqlstate = str(getattr(error, "sqlstate", None) or "")
    if sqlstate[:2] in LOGIN_CLASSES:
        return LoginRejected(str(error))
    if isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name:
        # No partition exists for the row yet; the gateway's maintenance will create one soon (partitions.py).
        return DatabaseUnavailable("no partition exists for this time")
    if isinstance(error, asyncpg.QueryCanceledError):
        return StatementTimedOut(f"{type(error).__name__} {sqlstate}")
    # asyncpg raises its own DataError, without contacting the server, if it cannot encode a value.
    rejected = sqlstate[:2] in REJECTION_CLASSES or isinstance(error, asyncpg.DataError | UnicodeError)
    description = f"{type(error).__name__} {sqlstate}".rstrip()
    return DataRejected(description) if rejected else DatabaseUnavailable(description)


async def await_database(engine: AsyncEngine, *, migrated: bool = True) -> None:
    """Wait until PostgreSQL and, if `migrated`, its schema are ready; raise `StartupError` if waiting cannot help."""
    acceptable = {None} if migrated else {None, NOT_MIGRATED}
    outage = Outage(log, "postgresql is not ready")
    while (problem := await database_problem(engine)) not in acceptable:  # noqa: ASYNC110 - PostgreSQL can only be polled
        await asyncio.sleep(outage.failed(problem))
    outage.ended()


async def database_problem(engine: AsyncEngine) -> str | None:
    """Return why PostgreSQL cannot be used now, or None if it can; raise `StartupError` if waiting cannot help."""
    try:
        with database_errors():
            async with engine.connect() as connection:
                version = int((await connection.execute(text("SHOW server_version_num"))).scalar_one()) // 10_000
                migrated = (await connection.execute(MIGRATED)).scalar_one()
    except LoginRejected as error:
        raise StartupError(f"PostgreSQL refuses the login (POSTGRES_USER, _PASSWORD or _DATABASE): {error}") from error
    except DatabaseUnavailable as error:
        return f"not reachable ({error})"
    if version < MINIMUM_VERSION:
        raise StartupError(f"PostgreSQL {version} is too old: {MINIMUM_VERSION} or newer is needed")
    return None if migrated else NOT_MIGRATED
