"""The outbox table: deliveries that are committed and not yet confirmed by the broker.

A row is published by whoever holds its lease. A lease that has run out is free to take: its holder is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content, DeliveryRequested, DeliveryStatus, StatusChange
from notify_database.engine import database_errors, without_transactions
from sqlalchemy import TextClause, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.outbox.changes import status_changes

LEASE = timedelta(seconds=30)

TAKE_DUE = text("""
    WITH due AS (
        SELECT delivery_id, round FROM outbox
        WHERE due_at <= now() AND (leased_until IS NULL OR leased_until < now())
        ORDER BY due_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), story AS MATERIALIZED (
        SELECT d.id, d.notification_id, d.channel, d.recipient, d.status, d.round, d.attempt, d.failures,
               clock_timestamp() AS updated_at,
               n.user_id, n.message, n.subject, CASE d.channel WHEN 'email' THEN n.email END AS email, n.expires_at,
               n.traceparent,
               CASE
                   WHEN u.opted_out THEN 'cancelled'
                   WHEN n.expires_at <= now() THEN 'expired'
               END AS end_status
        FROM due
        -- The row is as it is now, the delivery as it was when the statement began: where an operator has put it back
        -- in between, their rounds differ, and the row waits for the next look.
        JOIN deliveries d ON d.id = due.delivery_id AND d.round = due.round
        JOIN notifications n ON n.id = d.notification_id
        LEFT JOIN user_channels u ON u.tenant = n.tenant AND u.user_id = n.user_id AND u.channel = d.channel
    ), ended AS (
        UPDATE deliveries
        SET status = end_status, updated_at = story.updated_at,
            reason = CASE end_status WHEN 'cancelled' THEN 'opted_out' END
        FROM story
        WHERE deliveries.id = story.id AND deliveries.round = story.round AND deliveries.status = 'pending'
          AND end_status IS NOT NULL
    ), gone AS (
        -- Too late, or not wanted any more; or its relay died between the confirm and the delete: its story has gone on
        -- without the row.
        DELETE FROM outbox USING story
        WHERE outbox.delivery_id = story.id AND outbox.round = story.round
          AND (story.status <> 'pending' OR end_status IS NOT NULL)
    ), taken AS (
        UPDATE outbox SET leased_until = now() + CAST(:lease AS interval)
        FROM story
        WHERE outbox.delivery_id = story.id AND outbox.round = story.round
          AND story.status = 'pending' AND end_status IS NULL
    )
    SELECT * FROM story WHERE status = 'pending'
""").columns(email=JSONB)
# What a relay holds is a row of one round: a retry by an operator makes it another row, which is not its to touch.
HELD = """
    FROM unnest(CAST(:ids AS uuid[]), CAST(:rounds AS integer[])) AS held (id, round)
    WHERE outbox.delivery_id = held.id AND outbox.round = held.round
"""
RENEW = text(f"UPDATE outbox SET leased_until = now() + CAST(:lease AS interval) {HELD}")  # noqa: S608 - a constant
RELEASE = text(f"UPDATE outbox SET leased_until = NULL {HELD}")  # noqa: S608 - as above
DELETE = text(f"DELETE FROM outbox {HELD.replace('FROM', 'USING')}")  # noqa: S608 - as above


# Not all of a million: who looks only wants to know that there are many.
BACKLOG = text("""
    SELECT count(*) AS rows, coalesce(extract(epoch FROM now() - min(due_at)), 0) AS oldest
    FROM (SELECT due_at FROM outbox WHERE due_at <= now() ORDER BY due_at LIMIT 100000) AS due
""")


@dataclass(frozen=True, slots=True)
class DueDeliveries:
    """What is due: to be published, or ended instead."""

    requests: Sequence[DeliveryRequested]
    ended: Sequence[StatusChange]


class OutboxStore:
    """The statements on the outbox; each is a transaction of its own and raises `DatabaseUnavailable`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = without_transactions(engine)

    async def take_due(self, limit: int) -> DueDeliveries:
        """Lease at most `limit` due rows that nobody holds; end those that are too late or not wanted any more."""
        with database_errors():
            async with self._engine.connect() as connection:
                rows = (await connection.execute(TAKE_DUE, {"limit": limit, "lease": LEASE})).all()
        return DueDeliveries(
            requests=[
                DeliveryRequested(
                    delivery_id=row.id,
                    notification_id=row.notification_id,
                    user_id=row.user_id,
                    channel=Channel(row.channel),
                    recipient=row.recipient,
                    content=Content(message=row.message, subject=row.subject, email=row.email),
                    round=row.round,
                    attempt=row.attempt + 1,
                    failures=row.failures,
                    expires_at=row.expires_at,
                    traceparent=row.traceparent,
                )
                for row in rows
                if row.end_status is None
            ],
            ended=[
                change
                for status in (DeliveryStatus.EXPIRED, DeliveryStatus.CANCELLED)
                for change in status_changes([row for row in rows if row.end_status == status], status)
            ],
        )

    async def backlog(self) -> tuple[float, float]:
        """How many rows are due (100,000 at most), and for how many seconds the oldest has been."""
        with database_errors():
            async with self._engine.connect() as connection:
                row = (await connection.execute(BACKLOG)).one()
        return float(row.rows), float(row.oldest)

    async def renew(self, held: Sequence[DeliveryRequested]) -> None:
        """Hold the leases longer: their publishes are under way still."""
        await self._execute(RENEW, held, lease=LEASE)

    async def release(self, held: Sequence[DeliveryRequested]) -> None:
        """Give the rows back; any relay may take them at once."""
        await self._execute(RELEASE, held)

    async def delete(self, held: Sequence[DeliveryRequested]) -> None:
        """Forget what the broker has confirmed."""
        await self._execute(DELETE, held)

    async def _execute(self, statement: TextClause, held: Sequence[DeliveryRequested], **parameters: object) -> None:
        ids, rounds = [request.delivery_id for request in held], [request.round for request in held]
        with database_errors():
            async with self._engine.connect() as connection:
                await connection.execute(statement, {"ids": ids, "rounds": rounds, **parameters})
