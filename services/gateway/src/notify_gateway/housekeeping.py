"""What a gateway does besides requests and relaying: retries of many, old idempotency keys, partitions."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from notify_common.lasting_fault import LastingFault
from notify_common.messages import StatusChange
from notify_common.process import utc_now
from notify_database.engine import DatabaseAway, StatementRefused
from notify_database.partitions import drop_partitions, make_partitions
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.delivery_retries import DeliveryRetries
from notify_gateway.idempotency import clean_keys

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between looks for a retry job
CLEANING_INTERVAL = 60.0  # seconds
PARTITIONS_INTERVAL = 3600.0  # seconds


async def keep_house(
    engine: AsyncEngine,
    retries: DeliveryRetries,
    tell: Callable[[Sequence[StatusChange]], None],
    stop: asyncio.Event,
    *,
    retention: timedelta | None,
) -> None:
    """Work in short transactions until `stop`; several gateways share the work. `retention`: None keeps everything."""
    stopping = asyncio.create_task(stop.wait())
    fault = LastingFault(log, "housekeeping has no database")
    next_cleaning = next_partitions = time.monotonic()
    while not stop.is_set():
        retried: Sequence[StatusChange] | None = None
        more = False
        try:
            retried = await retries.advance()
            more = time.monotonic() > next_cleaning and await clean_keys(engine)
            if time.monotonic() > next_cleaning and not more:
                next_cleaning = time.monotonic() + CLEANING_INTERVAL
        except DatabaseAway as away:
            fault.occurred(away)
        else:
            fault.over()
        if time.monotonic() > next_partitions:
            # By itself: a week that can not be made or dropped now must not keep the rest from its turn.
            next_partitions = time.monotonic() + PARTITIONS_INTERVAL
            try:
                await make_partitions(engine, utc_now())
                if retention is not None:
                    await drop_partitions(engine, utc_now(), retention)
            except (DatabaseAway, StatementRefused) as away:
                log.warning("partitions are looked at again in a minute", extra={"error": str(away)})
                next_partitions = time.monotonic() + CLEANING_INTERVAL
        if retried is not None:
            tell(retried)
        elif not more:
            await asyncio.wait({stopping}, timeout=INTERVAL)
