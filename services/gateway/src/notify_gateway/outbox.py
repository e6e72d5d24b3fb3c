"""The outbox table: deliveries that are committed and not yet confirmed by the broker.

A row is published by whoever holds its lease. A lease that has run out is free to take: its holder is gone.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from notify_common.channels import Channel
from notify_common.messages import Content, DeliveryRequested
from notify_database.engine import database_errors
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

LEASE = timedelta(seconds=30)

TAKE_DUE = text("""
    WITH due AS (
        SELECT delivery_id FROM outbox
        WHERE due_at <= now() AND (leased_until IS NULL OR leased_until < now())
        ORDER BY due_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), published AS (
        -- Its relay died between the confirm and the delete: the story of the delivery has gone on without it.
        DELETE FROM outbox USING due, deliveries d
        WHERE outbox.delivery_id = due.delivery_id AND d.id = due.delivery_id AND d.status <> 'pending'
    ), taken AS (
        UPDATE outbox SET leased_until = now() + CAST(:lease AS interval)
        FROM due, deliveries d
        WHERE outbox.delivery_id = due.delivery_id AND d.id = due.delivery_id AND d.status = 'pending'
        RETURNING outbox.delivery_id
    )
    SELECT d.id, d.notification_id, d.channel, d.recipient, d.round, d.attempt, d.failures,
           n.user_id, n.message, n.subject
    FROM taken
    JOIN deliveries d ON d.id = taken.delivery_id
    JOIN notifications n ON n.id = d.notification_id
""")
RENEW = text("""
    UPDATE outbox SET leased_until = now() + CAST(:lease AS interval)
    WHERE delivery_id = ANY(CAST(:ids AS uuid[]))
""")
RELEASE = text("UPDATE outbox SET leased_until = NULL WHERE delivery_id = ANY(CAST(:ids AS uuid[]))")
DELETE = text("DELETE FROM outbox WHERE delivery_id = ANY(CAST(:ids AS uuid[]))")


class Outbox:
    """The statements on the outbox; each is a transaction of its own and raises `DatabaseAway`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def take_due(self, limit: int) -> list[DeliveryRequested]:
        """Lease at most `limit` due rows that nobody holds."""
        with database_errors():
            async with self._engine.begin() as connection:
                rows = (await connection.execute(TAKE_DUE, {"limit": limit, "lease": LEASE})).all()
        return [
            DeliveryRequested(
                delivery_id=row.id,
                notification_id=row.notification_id,
                user_id=row.user_id,
                channel=Channel(row.channel),
                recipient=row.recipient,
                content=Content(message=row.message, subject=row.subject),
                round=row.round,
                attempt=row.attempt + 1,
                failures=row.failures,
            )
            for row in rows
        ]

    async def renew(self, ids: Sequence[UUID]) -> None:
        """Hold the leases longer: their publishes are under way still."""
        await self._execute(RENEW, ids=ids, lease=LEASE)

    async def release(self, ids: Sequence[UUID]) -> None:
        """Give the rows back; any relay may take them at once."""
        await self._execute(RELEASE, ids=ids)

    async def delete(self, ids: Sequence[UUID]) -> None:
        """Forget what the broker has confirmed."""
        await self._execute(DELETE, ids=ids)

    async def _execute(self, statement: TextClause, **parameters: object) -> None:
        with database_errors():
            async with self._engine.begin() as connection:
                await connection.execute(statement, parameters)
