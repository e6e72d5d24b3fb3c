"""Take rows from the table, and record outcomes.

Each function is one short transaction; none is open while a request is sent.

A relay leases rows before it sends them. If it dies, its leases end, and another relay takes the rows. If it is only
slow, two relays send the same row, with the same idempotency key, so that there is still one notification.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from notify_client.outbox.decisions import TOO_OLD, Outcome, Verdict, is_too_old, row_backoff
from notify_client.outbox.table import database_time, in_utc, table

LEASE = timedelta(seconds=30)


@dataclass(frozen=True)
class TakenRow:
    """A row that this relay has leased."""

    id: UUID
    body: str
    lease: UUID
    attempts: int
    """The number of attempts, including the one that follows."""
    first_attempt_before: datetime | None
    """Its `first_attempt_at` before it was taken."""


@dataclass(frozen=True)
class Taken:
    """The rows that one transaction has taken, and those that it has found to be too old."""

    rows: Sequence[TakenRow] = ()
    held: Sequence[UUID] = ()


def take(connection: Connection, limit: int) -> Taken:
    """Lease the oldest rows that are due. From now on, they count as attempted.

    Rows whose first attempt was too long ago are held instead.
    """
    now = database_time(connection)
    c = table.c
    # MySQL and SQLite compare with what they store, which has no time zone.
    due = (c.held_at.is_(None), or_(c.due_at.is_(None), c.due_at <= now))
    found = connection.execute(
        select(c.id, c.body, c.attempts, c.first_attempt_at)
        .where(*due)
        .order_by(c.created_at, c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)  # SQLite has no locks for rows, and ignores this
    ).all()
    too_old = [row.id for row in found if is_too_old(in_utc(row.first_attempt_at), now)]
    if too_old:
        error = func.coalesce(c.error + " ", "") + TOO_OLD
        connection.execute(update(table).where(c.id.in_(too_old), *due).values(held_at=now, error=error))
    lease = uuid4()
    rows = [
        TakenRow(row.id, row.body, lease, row.attempts + 1, in_utc(row.first_attempt_at))
        for row in found
        if row.id not in too_old
    ]
    if rows:
        changed = connection.execute(
            update(table)
            .where(c.id.in_([row.id for row in rows]), *due)
            .values(
                lease=lease,
                due_at=now + LEASE,
                attempts=c.attempts + 1,
                first_attempt_at=func.coalesce(c.first_attempt_at, now),
            )
        )
        if changed.rowcount != len(rows):  # without locks, another relay may have been faster
            ours = set(connection.execute(select(c.id).where(c.lease == lease)).scalars())
            rows = [row for row in rows if row.id in ours]
    return Taken(rows, too_old)


def finish(connection: Connection, outcomes: Iterable[tuple[TakenRow, Outcome]]) -> None:
    """Record the outcomes, and end the leases. A row that another relay has taken since is only deleted if sent."""
    now = database_time(connection)
    c = table.c
    # All relays lock rows in this order.
    for row, outcome in sorted(outcomes, key=lambda each: each[0].id):
        ours = (c.id == row.id, c.lease == row.lease)
        if outcome.verdict is Verdict.SENT:
            connection.execute(delete(table).where(c.id == row.id))
        elif outcome.verdict is Verdict.UNTRIED:
            values = {"due_at": None, "attempts": row.attempts - 1, "first_attempt_at": row.first_attempt_before}
            connection.execute(update(table).where(*ours).values(lease=None, **values))
        else:
            connection.execute(update(table).where(*ours).values(lease=None, **_after_failure(row, outcome, now)))


def _after_failure(row: TakenRow, outcome: Outcome, now: datetime) -> dict[str, object]:
    values: dict[str, object] = {"error": outcome.error, "due_at": now + row_backoff(row.attempts)}
    if outcome.verdict is Verdict.REFUSED:
        values |= {"held_at": now, "due_at": None}
    if outcome.verdict is Verdict.UNREACHABLE:
        # All rows wait for the gateway, so that this one must not wait longer than others when it is back.
        values |= {"due_at": None, "attempts": row.attempts - 1}
    if not outcome.maybe_executed:
        values["first_attempt_at"] = row.first_attempt_before
    return values


def is_held(ids: Sequence[UUID]) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that a row is one of these, and held."""
    return table.c.id.in_(ids), table.c.held_at.is_not(None)
