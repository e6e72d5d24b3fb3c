"""`python -m notify_database.maintenance`: create the coming weeks' partitions, and drop those that are too old.

This is a separate process, because it needs the rights of the tables' owner. It accepts no requests and reads no
messages. One process is enough; several share the work.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from notify_common.runtime.clock import utc_now
from notify_common.runtime.outage import Outage
from notify_common.runtime.process import run
from notify_common.runtime.settings import ServiceSettings, load_settings
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_database.clock import MAX_CLOCK_OFFSET, clock_offset
from notify_database.engine import PostgresSettings, await_database, create_engine
from notify_database.errors import DatabaseUnavailable, DataRejected
from notify_database.partitions import drop_partitions, make_partitions

log = logging.getLogger(__name__)

CHECK_INTERVAL = 60.0  # seconds
PARTITIONS_INTERVAL = 3600.0  # seconds
# Dropping a partition takes long. Without any timeout, the process would wait forever for a host that has vanished.
STATEMENT_TIMEOUT = 3600.0  # seconds


class MaintenanceSettings(ServiceSettings, PostgresSettings):
    """The settings of the maintenance process."""

    retention_days: int = Field(0, ge=0, le=36500)


class PartitionMaintenance:
    """Creates and drops partitions, unless this process's clock and PostgreSQL's differ, because one of them is wrong.

    Partitions are dropped after `retention`; None keeps them all.
    """

    def __init__(
        self, engine: AsyncEngine, retention: timedelta | None, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._engine = engine
        self._retention = retention
        self._clock = clock
        self._clock_outage = Outage(log, "partitions are not maintained, because a clock is wrong")
        self._next_partitions = time.monotonic()

    async def advance(self) -> None:
        """Compare the clocks, and maintain the partitions every hour. If something fails, only log it."""
        try:
            if await self._clocks_agree() and time.monotonic() >= self._next_partitions and await self._maintain():
                self._next_partitions = time.monotonic() + PARTITIONS_INTERVAL
        except (DatabaseUnavailable, DataRejected) as error:
            log.warning("partition maintenance failed; trying again in a minute", extra={"error": str(error)})

    async def _clocks_agree(self) -> bool:
        offset = await clock_offset(self._engine, self._clock)
        if abs(offset) > MAX_CLOCK_OFFSET:
            self._clock_outage.failed(f"this clock is {offset.total_seconds():+.0f} s ahead of PostgreSQL's")
            return False
        self._clock_outage.ended()
        return True

    async def _maintain(self) -> bool:
        if not await make_partitions(self._engine):
            return False
        await drop_partitions(self._engine, self._retention)
        return True


async def _maintain(settings: MaintenanceSettings) -> None:
    engine = create_engine(settings, pool_size=1, statement_timeout=STATEMENT_TIMEOUT)
    days = settings.retention_days
    try:
        await await_database(engine)
        partitions = PartitionMaintenance(engine, timedelta(days=days) if days else None)
        log.info("maintaining partitions", extra={"retention_days": days})
        while True:
            await partitions.advance()
            await asyncio.sleep(CHECK_INTERVAL)
    finally:
        await engine.dispose()


async def _main(settings: MaintenanceSettings) -> None:
    # An interrupted statement does no harm: the next process completes or reverts what this one has begun.
    working = asyncio.create_task(_maintain(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    with suppress(asyncio.CancelledError):
        await working
    log.info("stopped")


def main() -> None:
    """Maintain the partitions until SIGTERM."""
    settings = load_settings(MaintenanceSettings)
    run(lambda: _main(settings), settings)


if __name__ == "__main__":
    main()
