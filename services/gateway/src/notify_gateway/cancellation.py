"""Cancels what no process has leased yet."""

from uuid import UUID

from notify_common.messages import DeliveryStatus, StatusChange
from notify_database.engine import database_errors
from notify_database.id_ranges import of_the_same_time
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.status_changes import status_changes

# The lock on the outbox row decides between a cancellation and a relay: who has it first.
CANCEL = text("""
    WITH free AS (
        SELECT outbox.delivery_id
        FROM outbox JOIN deliveries ON deliveries.id = outbox.delivery_id
        WHERE deliveries.notification_id = :notification_id AND deliveries.id BETWEEN :first_id AND :last_id
          AND (outbox.leased_until IS NULL OR outbox.leased_until < now())
        ORDER BY outbox.delivery_id
        FOR UPDATE OF outbox
    ), gone AS (
        DELETE FROM outbox USING free WHERE outbox.delivery_id = free.delivery_id
    )
    UPDATE deliveries SET status = 'cancelled', reason = 'requested', updated_at = clock_timestamp()
    FROM free WHERE deliveries.id = free.delivery_id AND deliveries.status = 'pending'
    RETURNING deliveries.id, deliveries.notification_id, deliveries.channel, deliveries.round, deliveries.attempt,
              deliveries.updated_at
""")


async def cancel(engine: AsyncEngine, notification_id: UUID) -> list[StatusChange]:
    """Cancel the deliveries of the notification that wait in the outbox, in one transaction with their rows."""
    with database_errors():
        async with engine.begin() as connection:
            first_id, last_id = of_the_same_time(notification_id)
            parameters = {"notification_id": notification_id, "first_id": first_id, "last_id": last_id}
            rows = (await connection.execute(CANCEL, parameters)).all()
    return status_changes(rows, DeliveryStatus.CANCELLED)
