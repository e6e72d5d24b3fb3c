"""List held rows, send them again, or drop them, as an operator does.

With an `AsyncConnection`: `await connection.run_sync(list_held)`. The caller commits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, delete, select, update

from notify_client.outbox.decisions import WINDOW
from notify_client.outbox.store import is_held
from notify_client.outbox.table import database_time, in_utc, table


@dataclass(frozen=True)
class HeldNotification:
    """A notification that waits for an operator. It contains no message and no recipient."""

    id: UUID
    created_at: datetime
    held_at: datetime
    attempts: int
    maybe_sent: bool
    """True if the gateway may have stored it."""
    error: str
    reference: str | None


def list_held(connection: Connection, limit: int = 1000) -> list[HeldNotification]:
    """Return the held notifications, oldest first."""
    c = table.c
    found = connection.execute(select(table).where(c.held_at.is_not(None)).order_by(c.created_at, c.id).limit(limit))
    return [
        HeldNotification(
            row.id,
            in_utc(row.created_at) or row.created_at,
            in_utc(row.held_at) or row.held_at,
            row.attempts,
            row.first_attempt_at is not None,
            row.error or "",
            json.loads(row.body).get("reference"),
        )
        for row in found
    ]


def release(connection: Connection, ids: Sequence[UUID]) -> int:
    """Let relays send these held notifications, with the same idempotency keys; return how many there were.

    If the first attempt is too long ago, the gateway no longer knows the key: one that `maybe_sent` may then become a
    second notification.
    """
    now = database_time(connection)
    values = {"held_at": None, "due_at": None, "lease": None, "attempts": 0}
    # An attempt that is recent enough still limits for how long the next ones are safe.
    too_old = table.c.first_attempt_at <= now - WINDOW
    connection.execute(update(table).where(*is_held(ids), too_old).values(first_attempt_at=None))
    return connection.execute(update(table).where(*is_held(ids)).values(**values)).rowcount


def drop(connection: Connection, ids: Sequence[UUID]) -> int:
    """Delete these held notifications; return how many there were."""
    return connection.execute(delete(table).where(*is_held(ids))).rowcount
