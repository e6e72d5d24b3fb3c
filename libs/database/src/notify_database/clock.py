"""Compare this process's clock with PostgreSQL's."""

from collections.abc import Callable
from datetime import datetime, timedelta

from notify_common.runtime.clock import utc_now
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_database.engine import autocommitting, database_errors

MAX_CLOCK_OFFSET = timedelta(seconds=60)  # beyond this, one of the two clocks is wrong
DATABASE_TIME = text("SELECT clock_timestamp()")


async def clock_offset(engine: AsyncEngine, clock: Callable[[], datetime] = utc_now) -> timedelta:
    """Return how far `clock` is ahead of PostgreSQL's, give or take half a round trip."""
    with database_errors():
        async with autocommitting(engine).connect() as connection:
            asked_at = clock()
            database_time: datetime = (await connection.execute(DATABASE_TIME)).scalar_one()
            return asked_at + (clock() - asked_at) / 2 - database_time
