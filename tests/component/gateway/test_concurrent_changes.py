"""Deliveries that change between the moment at which a poll reads them and the moment at which it locks them.

PostgreSQL then checks the newest version of each row again. It does so wrongly in some plans, and may even crash.
"""

import asyncio
from datetime import timedelta
from uuid import UUID

from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import blocked_or_done
from support.services import TIMEOUT

ADD_EXPIRED = text("""
    WITH n AS (
        INSERT INTO notifications (id, user_id, message, created_at, expires_at)
        VALUES (:notification_id, 1, 'x', now(), now()) RETURNING id
    ), d AS (
        INSERT INTO deliveries SELECT CAST(:id AS uuid), id, 'telegram', '42', 'pending', 1, 0, 0, now() FROM n
    )
    INSERT INTO outbox (delivery_id, due_at, channel) VALUES (:id, now(), 'telegram')
""")
# A poll updates the rows without a delivery before it locks the deliveries that end.
ADD_INCOMPLETE = text("INSERT INTO outbox (delivery_id, due_at, channel) VALUES (:id, now(), 'telegram')")
HOLD = text("SELECT pg_advisory_xact_lock(1)")
CREATE_WAIT = text("""
    CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$
""")
WAIT = text("CREATE TRIGGER wait_for_test BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION wait_for_test()")
CHANGE = text("UPDATE deliveries SET updated_at = now() WHERE id = :id")


async def add_expired(engine: AsyncEngine, week: int) -> UUID:
    accepted_at = utc_now() + timedelta(weeks=week)
    values = {"id": new_id(accepted_at), "notification_id": new_id(accepted_at)}
    async with engine.begin() as connection:
        await connection.execute(ADD_EXPIRED, values)
    return values["id"]


async def test_expired_deliveries_that_change_meanwhile_are_ended(engine: AsyncEngine) -> None:
    expired = [await add_expired(engine, week) for week in range(5)]
    async with engine.begin() as connection:
        await connection.execute(ADD_INCOMPLETE, {"id": new_id(utc_now())})
        for statement in (CREATE_WAIT, WAIT):
            await connection.execute(statement)
    async with asyncio.timeout(TIMEOUT):
        async with engine.begin() as holding:
            await holding.execute(HOLD)
            polling = asyncio.create_task(OutboxStore(engine).take_due(10, ["telegram"]))
            await blocked_or_done(engine, polling)
            async with engine.begin() as connection:
                for delivery_id in expired:
                    await connection.execute(CHANGE, {"id": delivery_id})
        due = await polling
    assert {change.delivery_id for change in due.ended} == set(expired)
