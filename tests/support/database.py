"""An INSERT statement for a notification with its delivery, and helpers that wait until a session is blocked."""

import asyncio
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

ADD_DELIVERY = text("""
    WITH n AS (INSERT INTO notifications VALUES (:notification_id, 1, 'x', NULL, NULL, now(), 'default') RETURNING id)
    INSERT INTO deliveries SELECT CAST(:delivery_id AS uuid), id, 'telegram', NULL, 'pending', 1, 0, 0, now() FROM n
""")

WAITING_FOR_LOCKS = text("""
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
""")

SLOW_OUTBOX = (
    """
    CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END'
    """,
    "CREATE TRIGGER be_slow BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION be_slow()",
)


async def slow_down_outbox(engine: AsyncEngine) -> None:
    """Let each new row of the outbox take 20 ms."""
    async with engine.begin() as connection:
        for statement in SLOW_OUTBOX:
            await connection.execute(text(statement))


async def waiting_for_locks(engine: AsyncEngine) -> int:
    """Return the number of sessions in this database that are waiting for a lock."""
    async with engine.connect() as connection:
        return int((await connection.execute(WAITING_FOR_LOCKS)).scalar_one())


async def blocked_or_done(engine: AsyncEngine, *tasks: asyncio.Future[Any]) -> None:
    """Return once each of `tasks`, which execute one statement each, is done or waits for a lock."""
    while await waiting_for_locks(engine) < sum(not task.done() for task in tasks):
        pass
