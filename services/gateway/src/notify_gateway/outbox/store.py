"""The outbox table: deliveries that are committed but not yet confirmed by the broker.

A relay leases a row before it publishes the row's delivery. If a lease expires, its relay is presumed dead, and any
other relay may take the row. The time until which a row is leased identifies the lease: a relay whose lease has
expired no longer finds that time in the row, so it changes nothing.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from notify_common.contracts.channels import KNOWN_CHANNELS, Channel
from notify_common.contracts.messages import Content, DeliveryRequested, DeliveryStatus, StatusChange, incremented
from notify_database.engine import autocommitting, execute
from sqlalchemy import Executable, Row
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.outbox.lease import LEASE, Lease, lease_clock
from notify_gateway.outbox.statements import (
    BACKLOG,
    DELETE,
    DELETE_PUBLISHED,
    LIST_DUE,
    POSTPONE,
    RELEASE,
    RENEW,
    TAKE_DUE,
    TAKE_ROWS,
)

log = logging.getLogger(__name__)

MAX_TAKEN_BYTES = 4 * 1024 * 1024  # per channel and statement
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(seconds=30)
BACKOFF_LIMITS = {"first": FIRST_BACKOFF, "longest": LONGEST_BACKOFF}
MAX_ADOPTED = 5_000  # rows per statement
BACKLOG_CAP = 100_000  # due rows that are counted


RowKey = tuple[UUID, int]
"""The delivery and the round of an outbox row."""


class Held(NamedTuple):
    """A delivery to publish, and the lease on its outbox row."""

    request: DeliveryRequested
    lease: Lease


@dataclass(frozen=True, slots=True)
class Backlog:
    """Deliveries that are due and not confirmed by the broker; 100,000 are counted at most."""

    rows: float
    oldest: float
    """For how many seconds the oldest has been due."""
    unknown: float
    """How many of the rows are for channels that this version does not know, so that it leaves them alone."""


@dataclass(frozen=True, slots=True)
class DueDeliveries:
    """Due deliveries to publish, and status changes of those that expired or were cancelled."""

    held: Sequence[Held]
    ended: Sequence[StatusChange]
    more: Set[Channel]
    """The channels that may have further due deliveries."""


class OutboxStore:
    """Takes and updates outbox rows. Each method is one transaction.

    It may raise `DatabaseUnavailable`. If a single row makes it fail, it raises one of `ROW_ERRORS`.

    A delivery that is published right after its commit needs only `delete`. The other methods are for due deliveries
    that are found by polling, for late confirms, for failures, and for metrics.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = autocommitting(engine)
        self._warned_of_unknown = self._warned_of_incomplete = False

    async def take_due(
        self, limit: int, channels: Sequence[str] = KNOWN_CHANNELS, *, max_bytes: int = MAX_TAKEN_BYTES
    ) -> DueDeliveries:
        """Lease due rows without a lease; end deliveries that have expired or whose user opted out.

        For each channel, this takes at most `limit` rows, and stops once their bodies have `max_bytes`.
        """
        limits = {"limit": limit, "max_bytes": max_bytes, "max_adopted": MAX_ADOPTED}
        return await self._take(TAKE_DUE, channels=channels, **limits)

    async def due_rows(self, channel: Channel, limit: int) -> list[RowKey]:
        """Return the keys of the channel's first due rows that have no lease, without leasing them."""
        found = await execute(self._engine, LIST_DUE, channel=channel, limit=limit)
        return [(row.delivery_id, row.round) for row in found]

    async def take_rows(self, channel: Channel, rows: Sequence[RowKey], *, max_bytes: int) -> DueDeliveries:
        """Do what `take_due` does, but only for the rows among `rows` that are still due. Adopt no rows."""
        limits = {"limit": len(rows), "max_bytes": max_bytes, "max_adopted": 0}
        return await self._take(TAKE_ROWS, channels=[channel], ids=[delivery_id for delivery_id, _ in rows], **limits)

    async def _take(self, statement: Executable, *, limit: int, max_bytes: int, **parameters: object) -> DueDeliveries:
        began = lease_clock()
        parameters |= {"limit": limit, "max_bytes": max_bytes, "lease": LEASE, **BACKOFF_LIMITS}
        found = (await execute(self._engine, statement, **parameters)).all()
        # There is always a first row, but it has no id if no row was taken, ended or deleted.
        if found[0].incomplete and not self._warned_of_incomplete:
            self._warned_of_incomplete = True
            log.warning("outbox rows without a notification wait for it", extra={"count": found[0].incomplete})
        lease = Lease.beginning(began, found[0].leased_until)
        rows = [row for row in found if row.id]
        pending = [row for row in rows if row.status == DeliveryStatus.PENDING]  # the others have been deleted
        counts = Counter(row.channel for row in rows)
        full = {row.channel for row in rows if row.bytes_before + row.bytes >= max_bytes}
        full |= {channel for channel, count in counts.items() if count >= limit}
        return DueDeliveries(
            held=[Held(_request(row), lease) for row in pending if row.end_status is None],
            ended=[
                change
                for status in (DeliveryStatus.EXPIRED, DeliveryStatus.CANCELLED)
                for change in status_changes([row for row in pending if row.end_status == status], status)
            ],
            more={Channel(channel) for channel in full},
        )

    async def backlog(self) -> Backlog:
        """Count the due rows."""
        limits = {"cap": BACKLOG_CAP, "longest": LONGEST_BACKOFF}
        row = (await execute(self._engine, BACKLOG, known=KNOWN_CHANNELS, **limits)).one()
        if row.unknown and not self._warned_of_unknown:
            self._warned_of_unknown = True
            log.warning("deliveries over unknown channels wait for a newer version", extra={"count": row.unknown})
        return Backlog(float(row.rows), float(row.oldest), float(row.unknown))

    async def renew(self, held: Sequence[Held]) -> set[UUID]:
        """Set the leases of rows that are still being published to their `pending_until`; return the rows still held.

        After `DatabaseUnavailable`, they may or may not have been renewed.
        """
        return set((await execute(self._engine, RENEW, **_columns(held))).scalars())

    async def release(self, held: Sequence[Held]) -> None:
        """End the leases, so that any relay may take the rows at once."""
        await execute(self._engine, RELEASE, **_columns(held))

    async def postpone(self, held: Sequence[Held]) -> None:
        """End the leases of rows that the broker refused, so that any relay may take them after a backoff."""
        await execute(self._engine, POSTPONE, **_columns(held), **BACKOFF_LIMITS)

    async def delete(self, held: Sequence[Held]) -> None:
        """Delete the rows of deliveries that the broker has confirmed."""
        await execute(self._engine, DELETE, **_columns(held))

    async def delete_published(self, row: RowKey) -> None:
        """Delete the row of a delivery that was confirmed in this round, even if another relay has leased it since."""
        delivery_id, round_ = row
        await execute(self._engine, DELETE_PUBLISHED, id=delivery_id, round=round_)


def status_changes(rows: Iterable[Row[Any]], status: DeliveryStatus) -> list[StatusChange]:
    """Return a status change for each of these `deliveries` rows, which were just updated to `status`.

    Rows of channels that only a newer version knows are left out.
    """
    return [
        StatusChange.model_validate(
            {**row._asdict(), "delivery_id": row.id, "status": status, "changed_at": row.updated_at}
        )
        for row in rows
        if row.channel in KNOWN_CHANNELS
    ]


def _request(row: Row[Any]) -> DeliveryRequested:
    content = Content(message=row.message, subject=row.subject, email=row.email)
    return DeliveryRequested.model_validate(
        {**row._asdict(), "delivery_id": row.id, "content": content, "attempt": incremented(row.attempt)}
    )


def _columns(held: Sequence[Held]) -> dict[str, object]:
    # The statements search for the ids, and lock rows in id order, so that they do not deadlock with retries.
    rows = sorted(held, key=lambda each: each.request.delivery_id)
    return {
        "ids": [request.delivery_id for request, _ in rows],
        "rounds": [request.round for request, _ in rows],
        "leases": [lease.until for _, lease in rows],
        "renewals": [lease.pending_until for _, lease in rows],
    }
