"""Weekly partitions of notifications, deliveries and attempts: created ahead of time and dropped when they are too old.

Each is named after its exclusive end: `deliveries_until_20261207` runs until 2026-12-07 00:00 UTC, for a week or, if it
is the first one, from the beginning of time. PostgreSQL's clock alone decides which weeks are missing or old.
"""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

from notify_common.contracts.ids import accepted_at, first_id_at
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_database.engine import autocommitting, database_errors
from notify_database.errors import DatabaseUnavailable, DataRejected, StatementTimedOut

log = logging.getLogger(__name__)

# The partitioned tables, in the order in which old partitions are detached, and their storage parameters. Notifications
# come first, so that no operator can retry a delivery whose partition is about to be dropped. The fill factor leaves
# room for HOT updates of the status.
STORAGE = {"notifications": "", "deliveries": "WITH (fillfactor = 80)", "attempts": ""}
WIDTH = timedelta(weeks=1)
AHEAD = timedelta(weeks=5)
# It is short, because a statement that waits for a lock blocks every later one on the table.
PARTITION_LOCK_TIMEOUT = "2s"
ADVISORY_LOCK = 0x6E6F74706172  # an arbitrary key that nothing else in this database uses

# An interrupted detach has already taken the partition away from new statements. A bound is NULL if it is MINVALUE.
CHILDREN = text(r"""
    SELECT child.relname, inhdetachpending,
           CAST(substring(bounds FROM $$FROM \('([-0-9a-f]+)'\)$$) AS uuid) AS begin_id,
           CAST(substring(bounds FROM $$TO \('([-0-9a-f]+)'\)$$) AS uuid) AS end_id
    FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid, pg_get_expr(relpartbound, child.oid) AS bounds
    WHERE inhparent = to_regclass(:table)
""")
NOW = text("SELECT now()")
IS_OLD = text("SELECT CAST(:end AS timestamptz) <= clock_timestamp() - CAST(:retention AS interval)")
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


def gaps(
    covered: Iterable[tuple[datetime, datetime]], begin: datetime, until: datetime
) -> list[tuple[datetime, datetime]]:
    """Return the weeks from `begin` until at least `until` that are not `covered`, each with its begin and end."""
    missing = []
    forever = datetime.max.replace(tzinfo=UTC)
    for covered_begin, covered_end in [*sorted(covered), (forever, forever)]:
        while begin < min(covered_begin, until):
            end = min(begin + WIDTH, covered_begin)
            missing.append((begin, end))
            begin = end
        begin = max(begin, covered_end)
    return missing


async def make_partitions(engine: AsyncEngine) -> bool:
    """Create the missing partitions for this week and the coming weeks without blocking readers or writers.

    Return False if another process is creating or dropping partitions.
    """
    with database_errors():
        async with engine.begin() as connection:
            # Waiting for the lock in PostgreSQL would deadlock with a DETACH that waits for the waiting statement.
            lock = text("SELECT pg_try_advisory_xact_lock(:key)")
            if not (await connection.execute(lock, {"key": ADVISORY_LOCK})).scalar_one():
                return False
            await connection.execute(text(f"SET LOCAL lock_timeout = '{PARTITION_LOCK_TIMEOUT}'"))
            now: datetime = (await connection.execute(NOW)).scalar_one()
            for table, storage in STORAGE.items():
                # An older version's gateway with a wrong clock may have begun to drop a week that is not over.
                for end in await _ends(connection, table):
                    if end > now:
                        await _attach_again(connection, table, end)
                for begin, end in gaps(await _covered(connection, table), _week_of(now), now + AHEAD):
                    await _make(connection, table, storage, begin, end)
    return True


async def drop_partitions(engine: AsyncEngine, retention: timedelta | None) -> list[datetime]:
    """Drop partitions that are older than `retention` and have only final deliveries; return the dropped ends.

    None keeps all weeks. The engine needs a long statement timeout, because reading a week of deliveries is slow.

    If a week cannot be dropped, the others still are, and its error is raised at the end.
    """
    dropped: list[datetime] = []
    failures: list[DatabaseUnavailable | DataRejected] = []
    with database_errors():
        async with autocommitting(engine).connect() as connection:
            lock = text("SELECT pg_try_advisory_lock(:key)")
            if not (await connection.execute(lock, {"key": ADVISORY_LOCK})).scalar_one():
                return []
            try:
                await connection.execute(text(f"SET lock_timeout = '{PARTITION_LOCK_TIMEOUT}'"))
                for end in sorted({end for table in STORAGE for end in await _ends(connection, table)}):
                    try:
                        if await _drop_if_old(connection, end, retention):
                            dropped.append(end)
                    except StatementTimedOut:
                        raise  # the other weeks would wait for the same lock
                    except (DatabaseUnavailable, DataRejected) as failure:
                        if connection.invalidated:
                            raise  # a new session would not hold the lock
                        failures.append(failure)
            finally:
                # Ending the session releases the lock and resets the settings, even after an error.
                await connection.invalidate()
    if failures:
        raise failures[0]
    return dropped


async def partitions_ahead(engine: AsyncEngine) -> timedelta:
    """Return for how long every table has partitions without a gap, from now on, but not more than `AHEAD`."""
    with database_errors():
        async with autocommitting(engine).connect() as connection:
            now: datetime = (await connection.execute(NOW)).scalar_one()
            until = now + AHEAD
            missing = [gap for table in STORAGE for gap in gaps(await _covered(connection, table), now, until)]
            return min((begin for begin, _ in missing), default=until) - now


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


async def _drop_if_old(connection: AsyncConnection, end: datetime, retention: timedelta | None) -> bool:
    """Drop the partitions if they are old and not needed; return True if they were dropped."""
    with database_errors():
        is_old = await connection.execute(IS_OLD, {"end": end, "retention": retention})
        if not is_old.scalar_one():
            await _revert_interrupted_drop(connection, end)
        elif await _drop(connection, end):
            log.info("partitions dropped", extra={"end": str(end.date())})
            return True
    return False


async def _drop(connection: AsyncConnection, end: datetime) -> bool:
    """Drop the partitions; return False if they are needed. The next call completes or reverts an interrupted drop."""
    needed = await _is_needed(connection, end)
    if not needed:
        await _detach(connection, "notifications", end)
        # An operator may have retried a delivery since the first check, but can no longer do so.
        needed = await _is_needed(connection, end)
    if needed:
        for table in STORAGE:
            await _attach_again(connection, table, end)
        return False
    for table in STORAGE:
        await _detach(connection, table, end)
    for table in STORAGE:
        await connection.execute(text(f"DROP TABLE IF EXISTS {partition_name(table, end)}"))
    return True


async def _revert_interrupted_drop(connection: AsyncConnection, end: datetime) -> None:
    """Attach the partitions of a week that is not old any more, for example because the retention is longer now.

    If none of them is attached, an operator may have detached the week.
    """
    partitions = {table: partition_name(table, end) for table in STORAGE}
    attached = [(await _children(connection, table)).get(partition) for table, partition in partitions.items()]
    if all(is_detaching is None for is_detaching in attached):
        return
    for table, partition in partitions.items():
        if (await connection.execute(EXISTS, {"partition": partition})).scalar_one():
            await _attach_again(connection, table, end)


async def _attach_again(connection: AsyncConnection, table: str, end: datetime) -> None:
    """Attach the partition that ends at `end` unless it is attached."""
    is_detaching = (await _children(connection, table)).get(partition_name(table, end))
    if is_detaching is False:
        return
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
    """Return the lowest bound that the partition that ends at `end` may have; None if no earlier partition exists.

    The partition may have begun later, if there was a gap before it. All its rows are within the wider bounds, too.
    """
    earlier = [each for each in await _ends(connection, table) if each < end]
    return first_id_at(max(earlier)) if earlier else None


async def _covered(connection: AsyncConnection, table: str) -> list[tuple[datetime, datetime]]:
    """Return the begin and the end of each attached partition of `table`."""
    return [
        (datetime.min.replace(tzinfo=UTC) if row.begin_id is None else _time_of(row.begin_id), _time_of(row.end_id))
        for row in await connection.execute(CHILDREN, {"table": table})
        if not row.inhdetachpending
    ]


async def _ends(connection: AsyncConnection, table: str) -> list[datetime]:
    """Return the sorted ends of the partitions of `table`, including any that are being dropped."""
    names = (await connection.execute(TABLES, {"pattern": f"^{table}_until_[0-9]{{8}}$"})).scalars()
    return sorted(datetime.strptime(name.rpartition("_")[2], "%Y%m%d").replace(tzinfo=UTC) for name in names)


def _time_of(bound: UUID) -> datetime:
    return datetime.fromtimestamp(accepted_at(bound), UTC)


def _week_of(now: datetime) -> datetime:
    """Return the Monday on which the week of `now` begins."""
    return datetime.combine(now.date() - timedelta(days=now.weekday()), time(), UTC)
