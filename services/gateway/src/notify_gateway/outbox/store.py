"""The outbox table: deliveries that are committed but not yet confirmed by the broker.

A relay leases a row before it publishes the row's delivery. If a lease expires, its relay is presumed dead, and any
other relay may take the row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from notify_common.contracts.messages import Content, DeliveryRequested, DeliveryStatus, StatusChange
from notify_database.engine import autocommitting, execute
from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine

LEASE = timedelta(seconds=30)

TAKE_DUE = text("""
    WITH due AS (
        SELECT delivery_id, round FROM outbox
        WHERE due_at <= now() AND (leased_until IS NULL OR leased_until < now())
        ORDER BY due_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), candidates AS MATERIALIZED (
        SELECT d.id, d.notification_id, d.channel, d.recipient, d.status, d.round, d.attempt, d.failures,
               clock_timestamp() AS updated_at,
               n.user_id, n.message, n.subject, CASE d.channel WHEN 'email' THEN n.email END AS email, n.expires_at,
               n.traceparent,
               CASE
                   WHEN u.opted_out THEN 'cancelled'
                   WHEN n.expires_at <= now() THEN 'expired'
               END AS end_status
        FROM due
        -- FOR UPDATE reads the latest version of an outbox row, but the delivery is read as it was when the statement
        -- began. If an operator has retried the delivery in between, the rounds differ, and a later poll takes the row.
        JOIN deliveries d ON d.id = due.delivery_id AND d.round = due.round
        JOIN notifications n ON n.id = d.notification_id
        LEFT JOIN user_channels u ON u.tenant = n.tenant AND u.user_id = n.user_id AND u.channel = d.channel
    ), ended AS (
        UPDATE deliveries
        SET status = end_status, updated_at = candidates.updated_at,
            reason = CASE end_status WHEN 'cancelled' THEN 'opted_out' END
        FROM candidates
        WHERE deliveries.id = candidates.id AND deliveries.round = candidates.round AND deliveries.status = 'pending'
          AND end_status IS NOT NULL
    ), deleted AS (
        -- This removes the rows of deliveries that end here, and rows that a relay left behind because it died between
        -- the confirm and the delete.
        DELETE FROM outbox USING candidates
        WHERE outbox.delivery_id = candidates.id AND outbox.round = candidates.round
          AND (candidates.status <> 'pending' OR end_status IS NOT NULL)
    ), taken AS (
        UPDATE outbox SET leased_until = now() + CAST(:lease AS interval)
        FROM candidates
        WHERE outbox.delivery_id = candidates.id AND outbox.round = candidates.round
          AND candidates.status = 'pending' AND end_status IS NULL
    )
    SELECT * FROM candidates WHERE status = 'pending'
""").columns(email=JSONB)
# A relay must not touch a row that an operator's retry has moved to a new round since the relay leased it.
HELD = """
    unnest(CAST(:ids AS uuid[]), CAST(:rounds AS integer[])) AS held (id, round)
    WHERE outbox.delivery_id = held.id AND outbox.round = held.round
"""
RENEW = text(f"UPDATE outbox SET leased_until = now() + CAST(:lease AS interval) FROM {HELD}")  # noqa: S608 - a constant
RELEASE = text(f"UPDATE outbox SET leased_until = NULL FROM {HELD}")  # noqa: S608 - as above
DELETE = text(f"DELETE FROM outbox USING {HELD}")  # noqa: S608 - as above
# The count is capped, because an exact count of a large backlog is not worth the scan.
BACKLOG = text("""
    SELECT count(*) AS rows, coalesce(extract(epoch FROM now() - min(due_at)), 0) AS oldest
    FROM (SELECT due_at FROM outbox WHERE due_at <= now() ORDER BY due_at LIMIT 100000) AS due
""")


@dataclass(frozen=True, slots=True)
class DueDeliveries:
    """Due deliveries to publish, and status changes of those that expired or were cancelled."""

    requests: Sequence[DeliveryRequested]
    ended: Sequence[StatusChange]


class OutboxStore:
    """Takes and updates outbox rows. Each method is one transaction and may raise `DatabaseUnavailable`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = autocommitting(engine)

    async def take_due(self, limit: int) -> DueDeliveries:
        """Lease at most `limit` due rows without a lease; end deliveries that have expired or whose user opted out."""
        rows = (await execute(self._engine, TAKE_DUE, limit=limit, lease=LEASE)).all()
        return DueDeliveries(
            requests=[
                DeliveryRequested.model_validate(
                    {
                        **row._asdict(),
                        "delivery_id": row.id,
                        "content": Content(message=row.message, subject=row.subject, email=row.email),
                        "attempt": row.attempt + 1,
                    }
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
        """Return the number of due rows (100,000 at most), and for how many seconds the oldest has been due."""
        row = (await execute(self._engine, BACKLOG)).one()
        return float(row.rows), float(row.oldest)

    async def renew(self, held: Sequence[DeliveryRequested]) -> None:
        """Renew the leases of rows that are still being published."""
        await execute(self._engine, RENEW, **_columns(held), lease=LEASE)

    async def release(self, held: Sequence[DeliveryRequested]) -> None:
        """End the leases, so that any relay may take the rows at once."""
        await execute(self._engine, RELEASE, **_columns(held))

    async def delete(self, held: Sequence[DeliveryRequested]) -> None:
        """Delete the rows of deliveries that the broker has confirmed."""
        await execute(self._engine, DELETE, **_columns(held))


def status_changes(rows: Iterable[Row[Any]], status: DeliveryStatus) -> list[StatusChange]:
    """Return a status change for each of these `deliveries` rows, which were just updated to `status`."""
    return [
        StatusChange.model_validate(
            {**row._asdict(), "delivery_id": row.id, "status": status, "changed_at": row.updated_at}
        )
        for row in rows
    ]


def _columns(held: Sequence[DeliveryRequested]) -> dict[str, object]:
    return {"ids": [request.delivery_id for request in held], "rounds": [request.round for request in held]}
