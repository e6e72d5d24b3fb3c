"""Partitions of notifications, deliveries and attempts: a week each, made ahead of time, dropped when they are too old.

Each is named after its end: `deliveries_until_20261207` holds what is older than that day (UTC), back to the last one.
"""

import logging
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

from notify_common.contracts.ids import first_id_at
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_database.engine import database_errors, without_transactions

log = logging.getLogger(__name__)

# In the order in which they are detached: a notification that can not be found can not be put back by an operator. The
# storage parameter leaves room on each page for the new version of a row: a change of status touches no index (HOT).
STORAGE = {"notifications": "", "deliveries": "WITH (fillfactor = 80)", "attempts": ""}
WIDTH = timedelta(weeks=1)
AHEAD = timedelta(weeks=5)
LOCK_TIMEOUT = "2s"  # who waits for a lock blocks all who come after
ADVISORY_LOCK = 0x6E6F74706172  # any number that nothing else in this database uses

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
    """Of the partition that ends there."""
    return f"{table}_until_{end:%Y%m%d}"


def first_end(now: datetime) -> datetime:
    """Where the first partition ends: on a Monday that is at least a day away."""
    day = (now + timedelta(days=1)).date()
    return datetime.combine(day + timedelta(days=7 - day.weekday()), time(), UTC)


async def make_partitions(engine: AsyncEngine, now: datetime) -> None:
    """Make what is missing of the next weeks. Nobody who reads or writes waits for it."""
    with database_errors():
        async with engine.begin() as connection:
            # Who comes second waits here and then finds nothing left to do.
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
            for table, storage in STORAGE.items():
                end = max(await _ends(connection, table))
                while end < now + AHEAD:
                    begin, end = end, end + WIDTH
                    await _make(connection, table, storage, begin, end)


async def drop_partitions(engine: AsyncEngine, now: datetime, retention: timedelta) -> list[datetime]:
    """Drop what ended longer than `retention` ago and is all final; the ends of what was dropped."""
    dropped: list[datetime] = []
    with database_errors():
        async with without_transactions(engine).connect() as connection:
            mine = text("SELECT pg_try_advisory_lock(:key)")
            if not (await connection.execute(mine, {"key": ADVISORY_LOCK})).scalar_one():
                return []
            try:
                await connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
                await connection.execute(text("SET statement_timeout = 0"))  # a whole week may have to be read
                ends = {end for table in STORAGE for end in await _ends(connection, table)}
                for end in sorted(end for end in ends if end + retention <= now):
                    if await _drop(connection, end):
                        log.info("partitions are dropped", extra={"end": str(end.date())})
                        dropped.append(end)
            finally:
                # The lock and the settings go with the session, whatever has happened to it.
                await connection.invalidate()
    return dropped


async def _make(connection: AsyncConnection, table: str, storage: str, begin: datetime, end: datetime) -> None:
    partition = partition_name(table, end)
    copied = "INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES"
    # Made by itself and then attached: that locks out nobody.
    await connection.execute(text(f"CREATE TABLE {partition} (LIKE {table} {copied}) {storage}"))
    await _attach(connection, table, end, first_id_at(begin))


async def _attach(connection: AsyncConnection, table: str, end: datetime, begin: UUID | None) -> None:
    bounds = f"FROM ({'MINVALUE' if begin is None else repr(str(begin))}) TO ('{first_id_at(end)}')"
    await connection.execute(
        text(f"ALTER TABLE {table} ATTACH PARTITION {partition_name(table, end)} FOR VALUES {bounds}")
    )


async def _drop(connection: AsyncConnection, end: datetime) -> bool:
    """Whether it could be dropped. Cut off in between, the next call goes on with what is left, or undoes it."""
    if await _is_needed(connection, end):
        await _attach_again(connection, end)
        return False
    await _detach(connection, "notifications", end)
    # An operator may have put one back meanwhile; from here on nobody can.
    if await _is_needed(connection, end):
        await _attach_again(connection, end)
        return False
    for table in STORAGE:
        await _detach(connection, table, end)
    for table in STORAGE:
        await connection.execute(text(f"DROP TABLE IF EXISTS {partition_name(table, end)}"))
    return True


async def _attach_again(connection: AsyncConnection, end: datetime) -> None:
    for table in STORAGE:
        children = {row.relname: row.inhdetachpending for row in await connection.execute(CHILDREN, {"table": table})}
        if children.get(partition_name(table, end)):
            await _detach(connection, table, end)  # to its end
        elif partition_name(table, end) in children:
            continue
        await _attach(connection, table, end, await _begin(connection, table, end))


async def _detach(connection: AsyncConnection, table: str, end: datetime) -> None:
    partition = partition_name(table, end)
    pending = {row.relname: row.inhdetachpending for row in await connection.execute(CHILDREN, {"table": table})}
    if partition in pending:
        how = "FINALIZE" if pending[partition] else "CONCURRENTLY"
        await connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {partition} {how}"))


async def _is_needed(connection: AsyncConnection, end: datetime) -> bool:
    deliveries = partition_name("deliveries", end)
    if not (await connection.execute(EXISTS, {"partition": deliveries})).scalar_one():
        return False  # dropped before a crash
    unfinished = (await connection.execute(text(OPEN.format(partition=deliveries)))).scalar_one()
    bounds = {"begin": await _begin(connection, "deliveries", end) or UUID(int=0), "end": first_id_at(end)}
    unpublished = (await connection.execute(UNPUBLISHED, bounds)).scalar_one()
    return bool(unfinished or unpublished)


async def _begin(connection: AsyncConnection, table: str, end: datetime) -> UUID | None:
    """The lower bound of the partition that ends there; None: there is none before it."""
    earlier = [each for each in await _ends(connection, table) if each < end]
    return first_id_at(max(earlier)) if earlier else None


async def _ends(connection: AsyncConnection, table: str) -> list[datetime]:
    """Of all partitions of `table`, one that is being dropped included."""
    names = (await connection.execute(TABLES, {"pattern": f"^{table}_until_[0-9]{{8}}$"})).scalars()
    return sorted(datetime.strptime(name.rpartition("_")[2], "%Y%m%d").replace(tzinfo=UTC) for name in names)
