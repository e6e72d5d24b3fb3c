"""Let one process at a time change the schema, and repeat a change that did not get a lock in time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from notify_common.runtime.outage import Outage
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from notify_database.online_schema_change import MIGRATION_LOCK_TIMEOUT

log = logging.getLogger(__name__)

ADVISORY_LOCK = 0x6E6F74696679  # an arbitrary key that nothing else in this database uses
LOCK_CONFLICTS = frozenset({"55P03", "40P01"})  # SQLSTATE: lock_not_available, deadlock_detected
POLL_INTERVAL = 0.2  # seconds
RETRY_INTERVAL = 1.0  # seconds, so that the statements that waited behind the migration can run


async def become_the_only_migrator(connection: AsyncConnection) -> None:
    """Wait for a lock that lasts until the session ends."""
    # CREATE INDEX CONCURRENTLY waits for all running statements, including one that waits for this lock.
    lock = text("SELECT pg_try_advisory_lock(:key)")
    while not (await connection.execute(lock, {"key": ADVISORY_LOCK})).scalar_one():
        await connection.commit()
        await asyncio.sleep(POLL_INTERVAL)
    await connection.commit()


def limit_lock_waits(connection: Connection) -> None:
    """Limit how long each later transaction waits for a lock.

    Statements in Alembic's `autocommit_block` are not limited: those that must run outside a transaction block nothing
    while they wait, but have to start from the beginning after a timeout.
    """

    @event.listens_for(connection, "begin")
    def set_timeout(beginning: Connection) -> None:
        if beginning.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            beginning.exec_driver_sql(f"SET LOCAL lock_timeout = '{MIGRATION_LOCK_TIMEOUT}'")


async def repeat_after_lock_conflicts(
    connection: AsyncConnection, change: Callable[[], Awaitable[None]], problem: str
) -> None:
    """Call `change` again until it gets its locks; log `problem` as long as it does not."""
    outage = Outage(log, problem)
    while True:
        try:
            await change()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in LOCK_CONFLICTS:
                raise
            await connection.rollback()
            outage.failed(error.orig)
            await asyncio.sleep(RETRY_INTERVAL)
        else:
            outage.ended()
            return
