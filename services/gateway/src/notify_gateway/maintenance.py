"""Background maintenance: retry jobs, stranded deliveries, expired idempotency keys, and partitions."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from notify_common.runtime.clock import utc_now
from notify_common.runtime.outage import Outage
from notify_database.clock import clock_offset
from notify_database.errors import DatabaseUnavailable, DataRejected
from notify_database.partitions import drop_partitions, make_partitions
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.notifications import idempotency

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between polls for a retry job
CLEANUP_INTERVAL = 60.0  # seconds
CLOCK_INTERVAL = 60.0  # seconds
PARTITIONS_INTERVAL = 3600.0  # seconds
MAX_CLOCK_OFFSET = timedelta(seconds=60)


class PartitionMaintenance:
    """Creates and drops partitions, unless this process's clock and PostgreSQL's differ, because one of them is wrong.

    Partitions are dropped after `retention`; None keeps them all. `observe_offset` is called with the seconds by which
    `clock` is ahead of PostgreSQL's.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        retention: timedelta | None,
        observe_offset: Callable[[float], None] = lambda _: None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._engine = engine
        self._retention = retention
        self._observe_offset = observe_offset
        self._clock = clock
        self._clock_outage = Outage(log, "partitions are not maintained, because a clock is wrong")
        self._next_check = self._next_partitions = time.monotonic()

    async def advance(self) -> None:
        """Compare the clocks every minute, and maintain the partitions every hour.

        If something fails, only log it, so that other maintenance continues, and try again in a minute.
        """
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CLOCK_INTERVAL
        try:
            if await self._clocks_agree() and time.monotonic() >= self._next_partitions and await self._maintain():
                self._next_partitions = time.monotonic() + PARTITIONS_INTERVAL
        except (DatabaseUnavailable, DataRejected) as error:
            log.warning("partition maintenance failed; trying again in a minute", extra={"error": str(error)})

    async def _clocks_agree(self) -> bool:
        offset = await clock_offset(self._engine, self._clock)
        self._observe_offset(offset.total_seconds())
        if abs(offset) > MAX_CLOCK_OFFSET:
            self._clock_outage.failed(f"this clock is {offset.total_seconds():+.0f} s ahead of PostgreSQL's")
            return False
        self._clock_outage.ended()
        return True

    async def _maintain(self) -> bool:
        if not await make_partitions(self._engine):
            return False
        if self._retention is not None:
            await drop_partitions(self._engine, self._retention)
        return True


async def run_maintenance(
    engine: AsyncEngine,
    retries: DeliveryRetries,
    stranded: StrandedDeliveries,
    partitions: PartitionMaintenance,
    stop: asyncio.Event,
) -> None:
    """Maintain the database until `stop` is set; several gateways share the work.

    Partitions are maintained by a task of their own, because dropping one takes long.
    """
    stopping = asyncio.create_task(stop.wait())
    async with asyncio.TaskGroup() as group:
        group.create_task(_maintain_rows(engine, retries, stranded, stopping))
        group.create_task(_maintain_partitions(partitions, stopping))


async def _maintain_rows(
    engine: AsyncEngine, retries: DeliveryRetries, stranded: StrandedDeliveries, stopping: "asyncio.Task[bool]"
) -> None:
    """Retry, repair and delete rows in short transactions. A step that PostgreSQL rejects does not stop the others."""
    outage = Outage(log, "database maintenance is interrupted")
    next_cleanup = time.monotonic()

    async def repair() -> bool:
        await stranded.step()
        return False

    async def clean_up() -> bool:
        nonlocal next_cleanup
        if time.monotonic() <= next_cleanup:
            return False
        more = await idempotency.clean_up(engine)
        if not more:
            next_cleanup = time.monotonic() + CLEANUP_INTERVAL
        return more

    steps = [
        (retries.advance, Outage(log, "retry jobs fail")),
        (repair, Outage(log, "stranded deliveries are not repaired")),
        (clean_up, Outage(log, "expired idempotency keys are not deleted")),
    ]
    while not stopping.done():
        more = False
        try:
            more = await _run(steps)
        except DatabaseUnavailable as unavailable:
            outage.failed(unavailable)
        else:
            outage.ended()
        if not more:
            await asyncio.wait({stopping}, timeout=INTERVAL)


async def _run(steps: Sequence[tuple[Callable[[], Awaitable[bool]], Outage]]) -> bool:
    """Run each step once, even if an earlier one is rejected; return True if one of them has more to do."""
    more = False
    for step, rejections in steps:
        try:
            more |= await step()
        except DataRejected as error:
            rejections.failed(error)
        else:
            rejections.ended()
    return more


async def _maintain_partitions(partitions: PartitionMaintenance, stopping: "asyncio.Task[bool]") -> None:
    while not stopping.done():
        await partitions.advance()
        await asyncio.wait({stopping}, timeout=INTERVAL)
