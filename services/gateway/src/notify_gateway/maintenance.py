"""Background maintenance: retry jobs, stranded deliveries, expired idempotency keys, and partitions."""

import asyncio
import logging
import time
from datetime import timedelta

from notify_common.runtime.clock import utc_now
from notify_common.runtime.outage import Outage
from notify_database.errors import DatabaseUnavailable, DataRejected
from notify_database.partitions import drop_partitions, make_partitions
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.notifications import idempotency

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between polls for a retry job
CLEANUP_INTERVAL = 60.0  # seconds
PARTITIONS_INTERVAL = 3600.0  # seconds


async def run_maintenance(
    engine: AsyncEngine,
    retries: DeliveryRetries,
    stranded: StrandedDeliveries,
    stop: asyncio.Event,
    *,
    retention: timedelta | None,
) -> None:
    """Maintain the database in short transactions until `stop` is set; several gateways share the work.

    Partitions are dropped after `retention`; None keeps them all.
    """
    stopping = asyncio.create_task(stop.wait())
    outage = Outage(log, "database maintenance is interrupted")
    next_cleanup = next_partitions = time.monotonic()
    while not stop.is_set():
        more = False
        try:
            more = await retries.advance()
            await stranded.step()
            if time.monotonic() > next_cleanup:
                if await idempotency.clean_up(engine):
                    more = True
                else:
                    next_cleanup = time.monotonic() + CLEANUP_INTERVAL
        except DatabaseUnavailable as unavailable:
            outage.failed(unavailable)
        else:
            outage.ended()
        if time.monotonic() > next_partitions:
            maintained = await _maintain_partitions(engine, retention)
            next_partitions = time.monotonic() + (PARTITIONS_INTERVAL if maintained else CLEANUP_INTERVAL)
        if not more:
            await asyncio.wait({stopping}, timeout=INTERVAL)


async def _maintain_partitions(engine: AsyncEngine, retention: timedelta | None) -> bool:
    """Create and drop partitions; if that fails, only log it and return False, so that other maintenance continues."""
    try:
        await make_partitions(engine, utc_now())
        if retention is not None:
            await drop_partitions(engine, utc_now(), retention)
    except (DatabaseUnavailable, DataRejected) as error:
        log.warning("partition maintenance failed; trying again in a minute", extra={"error": str(error)})
        return False
    return True
