"""Background maintenance of rows: retry jobs, stranded deliveries, and rows that are no longer needed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from notify_common.runtime.clock import utc_now
from notify_common.runtime.outage import Outage
from notify_database.clock import MAX_CLOCK_OFFSET, clock_offset
from notify_database.errors import ROW_ERRORS, DatabaseUnavailable, DataRejected, StatementTimedOut
from notify_database.partitions import partitions_ahead
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.api_keys.store import delete_former_keys
from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.deliveries.retry_jobs import delete_finished_jobs
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.notifications import idempotency

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between polls for a retry job, and the longest pause between its chunks
CLEANUP_INTERVAL = 60.0  # seconds
WATCH_INTERVAL = 60.0  # seconds
MIN_PARTITIONS_AHEAD = timedelta(weeks=4)  # the maintenance process, which has other rights, creates one week more


class DatabaseWatch:
    """Compares this clock with PostgreSQL's, and looks how far ahead partitions exist, once a minute.

    `observe_offset` is called with the seconds by which `clock` is ahead, and `observe_partitions` with the seconds for
    which there are partitions.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        observe_offset: Callable[[float], None],
        observe_partitions: Callable[[float], None],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._engine = engine
        self._observe_offset = observe_offset
        self._observe_partitions = observe_partitions
        self._clock = clock
        self._clock_outage = Outage(log, "new notifications get the wrong time, because a clock is wrong")
        self._partitions_outage = Outage(log, "partitions are not created in time; is their maintenance running?")
        self._next_look = time.monotonic()

    async def advance(self) -> None:
        """Look once a minute. If PostgreSQL is unavailable, try again in a minute."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + WATCH_INTERVAL
        try:
            offset = await clock_offset(self._engine, self._clock)
            ahead = await partitions_ahead(self._engine)
        except (DatabaseUnavailable, DataRejected) as error:
            log.warning("PostgreSQL's clock and partitions are unknown", extra={"error": str(error)})
            return
        self._observe_offset(offset.total_seconds())
        self._observe_partitions(ahead.total_seconds())
        if abs(offset) > MAX_CLOCK_OFFSET:
            self._clock_outage.failed(f"this clock is {offset.total_seconds():+.0f} s ahead of PostgreSQL's")
        else:
            self._clock_outage.ended()
        if ahead < MIN_PARTITIONS_AHEAD:
            self._partitions_outage.failed(f"there are partitions for only {ahead.days} more days")
        else:
            self._partitions_outage.ended()


async def run_maintenance(
    engine: AsyncEngine,
    retries: DeliveryRetries,
    stranded: StrandedDeliveries,
    watch: DatabaseWatch,
    stop: asyncio.Event,
) -> None:
    """Maintain the database until `stop` is set; several gateways share the work.

    The watch is a task of its own, so that it does not wait for long statements.
    """
    stopping = asyncio.create_task(stop.wait())
    async with asyncio.TaskGroup() as group:
        group.create_task(_maintain_rows(engine, retries, stranded, stopping))
        group.create_task(_watch(watch, stopping))


async def _maintain_rows(
    engine: AsyncEngine, retries: DeliveryRetries, stranded: StrandedDeliveries, stopping: "asyncio.Task[bool]"
) -> None:
    """Retry, repair and delete rows in short transactions, with pauses. A step that fails does not stop the others."""
    outage = Outage(log, "database maintenance is interrupted")

    async def repair() -> bool:
        await stranded.step()
        return False

    steps = [
        (retries.advance, Outage(log, "retry jobs fail")),
        (repair, Outage(log, "stranded deliveries are not repaired")),
        (_paced(engine, idempotency.clean_up), Outage(log, "expired idempotency keys are not deleted")),
        (_paced(engine, delete_finished_jobs), Outage(log, "finished retry jobs are not deleted")),
        (_paced(engine, delete_former_keys), Outage(log, "revoked and expired API keys are not deleted")),
    ]
    while not stopping.done():
        more, begin = False, time.monotonic()
        try:
            more = await _run(steps)
        except DatabaseUnavailable as unavailable:
            outage.failed(unavailable)
        else:
            outage.ended()
        # Without the pause, the retry jobs of a single tenant could keep PostgreSQL busy all the time, because each may
        # examine the deliveries of all tenants.
        pause = min(time.monotonic() - begin, INTERVAL) if more else INTERVAL
        await asyncio.wait({stopping}, timeout=pause)


def _paced(engine: AsyncEngine, clean_up: Callable[[AsyncEngine], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    """Return a step that calls `clean_up` until it has nothing more to do, and again `CLEANUP_INTERVAL` later."""
    next_cleanup = time.monotonic()

    async def step() -> bool:
        nonlocal next_cleanup
        if time.monotonic() <= next_cleanup:
            return False
        next_cleanup = time.monotonic() + CLEANUP_INTERVAL  # also if it fails, which may take long
        more = await clean_up(engine)
        if more:
            next_cleanup = time.monotonic()
        return more

    return step


async def _run(steps: Sequence[tuple[Callable[[], Awaitable[bool]], Outage]]) -> bool:
    """Run each step once, even if an earlier one fails; return True if one of them has more to do.

    Only while PostgreSQL is unavailable, the remaining steps are skipped.
    """
    more = False
    for step, failures in steps:
        try:
            more |= await step()
        except (*ROW_ERRORS, StatementTimedOut) as error:
            failures.failed(error)
        else:
            failures.ended()
    return more


async def _watch(watch: DatabaseWatch, stopping: "asyncio.Task[bool]") -> None:
    while not stopping.done():
        await watch.advance()
        await asyncio.wait({stopping}, timeout=INTERVAL)
