"""Connections to PostgreSQL."""

import asyncio
import logging
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import asyncpg
from notify_common.errors import StartupError
from notify_common.runtime.hosts import Address, AddressList, Hosts, addresses, shared_hosts
from notify_common.runtime.networks import is_local
from notify_common.runtime.outage import Outage
from notify_common.runtime.settings import EnvironmentSettings
from notify_common.runtime.tls import ClientFiles
from pydantic import Field, SecretStr, model_validator
from sqlalchemy import CursorResult, ExceptionContext, Executable, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from typing_extensions import override

from notify_database.connection import LOGIN_CLASSES, Connector, describe, sqlstate
from notify_database.errors import (
    DatabaseUnavailable,
    DataRejected,
    LoginRejected,
    StatementFailed,
    StatementTimedOut,
)

log = logging.getLogger(__name__)

MINIMUM_VERSION = 15
# A session that hangs in a transaction or waits for a lock must not block other sessions forever.
STATEMENT_TIMEOUT = 30.0  # seconds
IDLE_IN_TRANSACTION_TIMEOUT = 10.0  # seconds
# If PostgreSQL has not ended a statement this long after its timeout, its host has vanished. Without this limit,
# statements would wait until TCP gives up, which takes a quarter of an hour.
ANSWER_TIME = 5.0  # seconds
# How soon PostgreSQL ends a statement whose connection was closed. It never ends a commit that waits for a standby.
CLIENT_CHECK_INTERVAL = 2.0  # seconds
# Planner settings for clients that look up rows only by key. PostgreSQL may keep a prepared statement's plan forever,
# and a plan made while a table was empty would scan the whole table for every batch of results.
ROWS_BY_KEY = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
NOT_MIGRATED = "the schema is missing or older than this service: run notify-migrate"
# This query returns true once the newest migration has run.
MIGRATED = text(
    "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass('user_channels')"
    " AND conname = 'user_channels_user_check' AND convalidated)"
)
LOGIN_VARIABLES = "POSTGRES_USER, _PASSWORD, _DATABASE, _SSLMODE or _CERT_FILE"
POOL_TIMEOUT = 5.0  # seconds a request waits for a connection

# SQLSTATE classes (PostgreSQL documentation, appendix A): data exception, integrity constraint violation, program
# limit exceeded. A statement that fails with one of these will fail every time.
REJECTION_CLASSES = frozenset({"22", "23", "54"})
# Connection exception, feature not supported, invalid transaction state, statement name or schema name, transaction
# rollback, syntax error or access rule violation, insufficient resources, object state, operator intervention: these
# concern the server, the session or the schema. An error of any other class may be due to one row.
OUTAGE_CLASSES = frozenset({"08", "0A", "25", "26", "3F", "40", "42", "53", "55", "57"})
# read-only transaction, admin shutdown, crash shutdown, cannot connect now: the server is no longer the primary, or is
# about to end its connections.
LOST_SERVER_CODES = frozenset({"25006", "57P01", "57P02", "57P03"})


class SslMode(StrEnum):
    """How connections are encrypted, as in libpq (https://www.postgresql.org/docs/current/libpq-ssl.html)."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


VERIFYING = {SslMode.VERIFY_CA, SslMode.VERIFY_FULL}


class PostgresSettings(EnvironmentSettings):
    """The settings for connecting to PostgreSQL."""

    postgres_host: str = "localhost"
    postgres_port: int = Field(5432, ge=1, le=65535)
    postgres_hosts: AddressList | None = None
    postgres_connect_timeout: float = Field(5.0, gt=0, le=60)
    postgres_database: str = "notifications"
    postgres_user: str = "postgres"
    postgres_password: SecretStr = SecretStr("postgres")
    postgres_schema: Annotated[str, Field(pattern="^[a-z_][a-z0-9_]{0,62}$")] = "public"
    postgres_sslmode: SslMode | None = None
    postgres_ca_file: Path | None = None
    postgres_cert_file: Path | None = None
    postgres_key_file: Path | None = None

    @model_validator(mode="after")
    def _postgres_hosts_are_unambiguous(self) -> Self:
        if self.postgres_hosts is not None and "postgres_host" in self.model_fields_set:
            raise ValueError("POSTGRES_HOST and POSTGRES_HOSTS: set only one of them")
        return self

    @model_validator(mode="after")
    def _postgres_files_are_usable(self) -> Self:
        files, mode = self.postgres_files(), self.postgres_sslmode
        if mode is SslMode.VERIFY_CA and files.ca is None:
            # Everyone can get a certificate for some name from one of the system's authorities.
            raise ValueError("POSTGRES_SSLMODE: verify-ca needs POSTGRES_CA_FILE")
        if files.ca is not None and mode not in VERIFYING:
            raise ValueError("POSTGRES_CA_FILE: needs POSTGRES_SSLMODE=verify-full or verify-ca")
        if (variables := files.variables("POSTGRES")) and mode not in {*VERIFYING, SslMode.REQUIRE}:
            raise ValueError(f"{', '.join(variables)}: needs POSTGRES_SSLMODE=verify-full, verify-ca or require")
        files.check("POSTGRES")
        return self

    def postgres_files(self) -> ClientFiles:
        """Return the certificate files for connections to PostgreSQL."""
        return ClientFiles(self.postgres_ca_file, self.postgres_cert_file, self.postgres_key_file)

    def ssl_context(self) -> ssl.SSLContext:
        """Return the context for one connection with `require`, `verify-ca` or `verify-full`."""
        mode = self.postgres_sslmode
        return self.postgres_files().context(verify=mode in VERIFYING, check_hostname=mode is SslMode.VERIFY_FULL)

    @override
    def plain_text(self) -> list[str]:
        unset = "postgres_sslmode" not in self.model_fields_set
        remote = any(not is_local(address.host) for address in self._postgres_addresses())
        return [*super().plain_text(), *(["POSTGRES_SSLMODE"] if unset and remote else [])]

    def _postgres_addresses(self) -> tuple[Address, ...]:
        if self.postgres_hosts is None:
            return (Address(self.postgres_host, self.postgres_port),)
        return addresses(self.postgres_hosts, self.postgres_port)

    def postgres_servers(self) -> Hosts:
        """Return the primary and its standbys, which all connections of this process share."""
        return shared_hosts(self._postgres_addresses(), shuffled=False)

    def postgres_arguments(self) -> dict[str, Any]:
        """Return asyncpg's arguments for the login and the encryption of one connection."""
        arguments: dict[str, Any] = {
            "user": self.postgres_user,
            "password": self.postgres_password.get_secret_value(),
            "database": self.postgres_database,
        }
        if (mode := self.postgres_sslmode) is not None:
            plain = mode in {SslMode.DISABLE, SslMode.PREFER}
            arguments["ssl"] = mode.value if plain else self.ssl_context()
        return arguments


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
    session = {
        "command_timeout": statement_timeout + ANSWER_TIME if statement_timeout else None,
        "server_settings": {
            "search_path": settings.postgres_schema,
            "timezone": "UTC",
            "jit": "off",  # for short statements, JIT compilation costs more than it saves
            # A commit must wait for the disk, and for that of a synchronous standby if there is one.
            "synchronous_commit": "on",
            "statement_timeout": f"{statement_timeout * 1000:.0f}ms",
            "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT:.0f}s",
            "client_connection_check_interval": f"{CLIENT_CHECK_INTERVAL:.0f}s",
            **(planner or {}),
        },
    }
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=Connector(
            settings.postgres_servers(),
            lambda: {**settings.postgres_arguments(), **session},
            timeout=settings.postgres_connect_timeout,
            read_write=settings.postgres_hosts is not None,
        ),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        # Parameters contain messages and recipients, which must not appear in errors.
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "handle_error", _discard_if_lost)
    return engine


def _discard_if_lost(context: ExceptionContext) -> None:
    """Close a connection to a server that did not respond or is not the primary; the pool then replaces all others."""
    error = context.original_exception
    if isinstance(error, TimeoutError) or sqlstate(error) in LOST_SERVER_CODES:
        if context.connection is not None and (lost := context.connection.connection.driver_connection) is not None:
            lost.terminate()
        context.is_disconnect = True


def autocommitting(engine: AsyncEngine) -> AsyncEngine:
    """Return a copy of `engine` in which each statement commits itself, in one round trip; `begin()` has no effect."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate driver and connection pool errors into `DatabaseUnavailable`, a subclass of it, or `DataRejected`."""
    try:
        yield
    except DBAPIError as error:
        driver_error = error.orig.__cause__ if error.orig else None
        raise _translated(driver_error or error) from error
    except (
        PoolTimeout,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
        TimeoutError,
    ) as error:
        raise _translated(error) from error


async def execute(engine: AsyncEngine, statement: Executable, **parameters: object) -> CursorResult[Any]:
    """Execute one statement and commit it; on failure, raise `DatabaseUnavailable`, a subclass, or `DataRejected`."""
    with database_errors():
        async with engine.begin() as connection:
            return await connection.execute(statement, parameters)


def _translated(error: BaseException) -> DatabaseUnavailable | DataRejected:
    code = sqlstate(error)
    if code[:2] in LOGIN_CLASSES:
        return LoginRejected(str(error))
    if isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name:
        # No partition exists for a row (maintenance may create one soon), or a trigger has raised this code.
        return StatementFailed(f"{describe(error)}, or no partition exists for this time")
    if isinstance(error, asyncpg.QueryCanceledError | asyncpg.LockNotAvailableError):
        return StatementTimedOut(describe(error))
    # asyncpg raises its own DataError, without contacting the server, if it cannot encode a value.
    if code[:2] in REJECTION_CLASSES or isinstance(error, asyncpg.DataError | UnicodeError):
        return DataRejected(describe(error))
    if code and code[:2] not in OUTAGE_CLASSES:
        return StatementFailed(describe(error))
    return DatabaseUnavailable(describe(error))  # without a code, it was raised by the driver or by the pool


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
        raise StartupError(f"PostgreSQL refuses the login ({LOGIN_VARIABLES}): {error}") from error
    except DatabaseUnavailable as error:
        return f"not reachable ({error})"
    if version < MINIMUM_VERSION:
        raise StartupError(f"PostgreSQL {version} is too old: {MINIMUM_VERSION} or newer is needed")
    return None if migrated else NOT_MIGRATED
