"""Weekly partitions of notifications, deliveries and attempts: created ahead of time and dropped when they are too old.

Each is named after its exclusive end: `deliveries_until_20261207` starts where the previous one ends and runs until
2026-12-07 00:00 UTC.
"""

import logging
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

from notify_common.contracts.ids import first_id_at
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_database.engine import autocommitting, database_errors

log = logging.getLogger(__name__)

# The partitioned tables, in the order in which old partitions are detached, and their storage parameters. Notifications
# come first, so that no operator can retry a delivery whose partition is about to be dropped. The fill factor leaves
# room for HOT updates of the status.
STORAGE = {"notifications": "", "deliveries": "WITH (fillfactor = 80)", "attempts": ""}
WIDTH = timedelta(weeks=1)
AHEAD = timedelta(weeks=5)
LOCK_TIMEOUT = "2s"  # short, because a statement that waits for a lock blocks every later one on the table
ADVISORY_LOCK = 0x6E6F74706172  # an arbitrary key that nothing else in this database uses

CHILDREN = text("""
    SELECT child.relname, inhdetachpending
    FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid WHERE inhparent = to_regclass(:table)
""")
TABLES = text("""
    SELECT relname FROM pg_class
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname ~ :pattern
""")
EXISTS = text("SELECT to_regclass(:partition) IS NOT NULL")
OPEN = "SELECT EXISTS (SELECT FROM {partition} WHERE status IN ('pending', 'retrying'))"
UNPUBLISHED = text("SELECT EXISTS (SELECT FROM outbox WHERE delivery_id >= :begin AND delivery_id < :end)")


def partition_name(table: str, end: datetime) -> str:
    """Return the name of the partition of `table` that ends at `end`."""
    return f"{table}_until_{end:%Y%m%d}"


def first_end(now: datetime) -> datetime:
    """Return the end of the first partition: the next Monday that is at least a day away."""
    day = (now + timedelta(days=1)).date()
    return datetime.combine(day + timedelta(days=7 - day.weekday()), time(), UTC)


async def make_partitions(engine: AsyncEngine, now: datetime) -> None:
    """Create the missing partitions for the coming weeks without blocking readers or writers."""
    with database_errors():
        async with engine.begin() as connection:
            # A concurrent process waits here and then finds nothing left to do.
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
            for table, storage in STORAGE.items():
                end = max(await _ends(connection, table))
                while end < now + AHEAD:
                    begin, end = end, end + WIDTH
                    await _make(connection, table, storage, begin, end)


async def drop_partitions(engine: AsyncEngine, now: datetime, retention: timedelta) -> list[datetime]:
    """Drop partitions that are older than `retention` and have only final deliveries; return the dropped ends."""
    dropped: list[datetime] = []
    with database_errors():
        async with autocommitting(engine).connect() as connection:
            lock = text("SELECT pg_try_advisory_lock(:key)")
            if not (await connection.execute(lock, {"key": ADVISORY_LOCK})).scalar_one():
                return []
            try:
                await connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
                await connection.execute(text("SET statement_timeout = 0"))  # reading a week of deliveries is slow
                ends = {end for table in STORAGE for end in await _ends(connection, table)}
                for end in sorted(end for end in ends if end + retention <= now):
                    if await _drop(connection, end):
                        log.info("partitions dropped", extra={"end": str(end.date())})
                        dropped.append(end)
            finally:
                # Ending the session releases the lock and resets the settings, even after an error.
                await connection.invalidate()
    return dropped


async def _make(connection: AsyncConnection, table: str, storage: str, begin: datetime, end: datetime) -> None:
    partition = partition_name(table, end)
    copied = "INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES"
    # Attaching an existing table does not block other sessions, but creating it as a partition would.
    await connection.execute(text(f"CREATE TABLE {partition} (LIKE {table} {copied}) {storage}"))
    await _attach(connection, table, end, first_id_at(begin))


async def _attach(connection: AsyncConnection, table: str, end: datetime, begin: UUID | None) -> None:
    bounds = f"FROM ({'MINVALUE' if begin is None else repr(str(begin))}) TO ('{first_id_at(end)}')"
    partition = partition_name(table, end)
    await connection.execute(text(f"ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES {bounds}"))


async def _drop(connection: AsyncConnection, end: datetime) -> bool:
    """Drop the partitions; return False if they are needed. The next call completes or reverts an interrupted drop."""
    needed = await _is_needed(connection, end)
    if not needed:
        await _detach(connection, "notifications", end)
        # An operator may have retried a delivery since the first check, but can no longer do so.
        needed = await _is_needed(connection, end)
    if needed:
        await _attach_again(connection, end)
        return False
    for table in STORAGE:
        await _detach(connection, table, end)
    for table in STORAGE:
        await connection.execute(text(f"DROP TABLE IF EXISTS {partition_name(table, end)}"))
    return True


async def _attach_again(connection: AsyncConnection, end: datetime) -> None:
    for table in STORAGE:
        is_detaching = (await _children(connection, table)).get(partition_name(table, end))
        if is_detaching is False:
            continue  # it is still attached
        await _detach(connection, table, end)  # completes an interrupted detach, which cannot be reverted
        await _attach(connection, table, end, await _begin(connection, table, end))


async def _detach(connection: AsyncConnection, table: str, end: datetime) -> None:
    partition = partition_name(table, end)
    children = await _children(connection, table)
    if partition in children:
        how = "FINALIZE" if children[partition] else "CONCURRENTLY"
        await connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {partition} {how}"))


async def _children(connection: AsyncConnection, table: str) -> dict[str, bool]:
    """Map the name of each attached partition of `table` to True if its detach was interrupted, else False."""
    return {row.relname: row.inhdetachpending for row in await connection.execute(CHILDREN, {"table": table})}


async def _is_needed(connection: AsyncConnection, end: datetime) -> bool:
    deliveries = partition_name("deliveries", end)
    if not (await connection.execute(EXISTS, {"partition": deliveries})).scalar_one():
        return False  # an earlier call dropped it and then crashed
    unfinished = (await connection.execute(text(OPEN.format(partition=deliveries)))).scalar_one()
    bounds = {"begin": await _begin(connection, "deliveries", end) or UUID(int=0), "end": first_id_at(end)}
    unpublished = (await connection.execute(UNPUBLISHED, bounds)).scalar_one()
    return bool(unfinished or unpublished)


async def _begin(connection: AsyncConnection, table: str, end: datetime) -> UUID | None:
    """Return the lower bound of the partition that ends at `end`; None if no earlier partition exists."""
    earlier = [each for each in await _ends(connection, table) if each < end]
    return first_id_at(max(earlier)) if earlier else None


async def _ends(connection: AsyncConnection, table: str) -> list[datetime]:
    """Return the sorted ends of the partitions of `table`, including any that are being dropped."""
    names = (await connection.execute(TABLES, {"pattern": f"^{table}_until_[0-9]{{8}}$"})).scalars()
    return sorted(datetime.strptime(name.rpartition("_")[2], "%Y%m%d").replace(tzinfo=UTC) for name in names)
