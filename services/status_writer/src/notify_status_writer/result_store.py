"""Apply any number of results in one transaction. First results need two statements: one locks, and one writes.

Repeated results need one more, and so do deliveries that are unknown, or that another transaction has locked.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from operator import attrgetter
from typing import Any
from uuid import UUID

from notify_common.contracts.channels import KNOWN_CHANNELS
from notify_common.contracts.messages import DeliveryResult, DeliveryStatus, StatusChange
from notify_database.engine import database_errors, execute
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_status_writer.delivery_state import (
    DeliveryState,
    Refusal,
    Reported,
    advance_all,
    best_attempts,
    refusal,
)

COLUMNS = "id, notification_id, channel, status, round, attempt, failures"
# The statements name the range of ids, because PostgreSQL does not prune partitions by `ANY` or by a join.
# Rows that others have locked are left out, so that an open transaction of an operator delays only their results.
# The time is taken after all locks are held, so that no change gets a time that a subscriber has already passed.
LOCK = text(f"""
    WITH locked AS (
        SELECT {COLUMNS} FROM deliveries
        WHERE id = ANY(CAST(:ids AS uuid[])) AND id BETWEEN :first_id AND :last_id ORDER BY id
        FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT *, clock_timestamp() AS locked_at FROM locked ORDER BY id
""")  # noqa: S608 - the columns are a constant
EXISTING = text("""
    SELECT id FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])) AND id BETWEEN :first_id AND :last_id
""")
READ = text(f"SELECT {COLUMNS} FROM deliveries WHERE id = :id")  # noqa: S608 - the columns are a constant
# An attempt is overwritten only by a higher rank: sent > failed > retrying, throttled.
OVERWRITES = """
    (({new}.outcome = 'sent' AND attempts.outcome <> 'sent')
    OR ({new}.outcome = 'failed' AND attempts.outcome IN ('retrying', 'throttled')))
"""
# `WRITE` would wait for the lock of an attempt, and keep the results of all channels waiting. Attempts that it would
# not overwrite are only read, so that a repeated result waits for nothing. The subqueries look up one row at a time,
# because PostgreSQL might otherwise compare each result with the whole range of ids.
LOCK_ATTEMPTS = text(f"""
    WITH stored AS MATERIALIZED (
        SELECT reported.delivery_id, reported.attempt, {OVERWRITES.format(new="reported")} AS overwritten
        FROM unnest(
            CAST(:delivery_id AS uuid[]), CAST(:attempt AS integer[]), CAST(:outcome AS text[])
        ) AS reported (delivery_id, attempt, outcome)
        CROSS JOIN LATERAL (
            SELECT outcome FROM attempts
            WHERE delivery_id = reported.delivery_id AND attempt = reported.attempt
              AND delivery_id BETWEEN :first_id AND :last_id
            LIMIT 1
        ) AS attempts
    )
    SELECT stored.*, held.attempt IS NOT NULL AS held
    FROM stored LEFT JOIN LATERAL (
        SELECT attempt FROM attempts
        WHERE overwritten AND delivery_id = stored.delivery_id AND attempt = stored.attempt
          AND delivery_id BETWEEN :first_id AND :last_id
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS held ON true
""")  # noqa: S608 - a constant
# `width_bucket(id, ids)` finds the position of `id` in the sorted ids by binary search; the new values are at the same
# position of their arrays. PostgreSQL would plan a join badly while the newest rows are not in its statistics: it would
# compare each result with all deliveries in the range of ids.
WRITE = text(f"""
    WITH changed AS (
        UPDATE deliveries
        SET status = (CAST(:changed_status AS text[]))[width_bucket(id, CAST(:changed_id AS uuid[]))],
            round = (CAST(:changed_round AS integer[]))[width_bucket(id, CAST(:changed_id AS uuid[]))],
            attempt = (CAST(:changed_attempt AS integer[]))[width_bucket(id, CAST(:changed_id AS uuid[]))],
            failures = (CAST(:changed_failures AS integer[]))[width_bucket(id, CAST(:changed_id AS uuid[]))],
            reason = CASE
                WHEN (CAST(:changed_status AS text[]))[width_bucket(id, CAST(:changed_id AS uuid[]))] = 'cancelled'
                THEN reason
            END,
            updated_at = :changed_at
        WHERE id = ANY(CAST(:changed_id AS uuid[])) AND id BETWEEN :first_id AND :last_id
    )
    INSERT INTO attempts
        (delivery_id, attempt, round, outcome, error_class, error_code, provider_message_id,
         started_at, finished_at, next_attempt_at, error_text)
    SELECT * FROM unnest(
        CAST(:attempt_delivery_id AS uuid[]), CAST(:attempt_attempt AS integer[]), CAST(:attempt_round AS integer[]),
        CAST(:attempt_outcome AS text[]), CAST(:attempt_error_class AS text[]), CAST(:attempt_error_code AS text[]),
        CAST(:attempt_provider_message_id AS text[]), CAST(:attempt_started_at AS timestamptz[]),
        CAST(:attempt_finished_at AS timestamptz[]), CAST(:attempt_next_attempt_at AS timestamptz[]),
        CAST(:attempt_error_text AS text[])
    )
    ON CONFLICT (delivery_id, attempt) DO UPDATE SET
        round = excluded.round, outcome = excluded.outcome, error_class = excluded.error_class,
        error_code = excluded.error_code, provider_message_id = excluded.provider_message_id,
        started_at = excluded.started_at, finished_at = excluded.finished_at,
        next_attempt_at = excluded.next_attempt_at, error_text = excluded.error_text
    WHERE {OVERWRITES.format(new="excluded")}
""")  # noqa: S608 - a constant

CHANGED_COLUMNS = ("id", "status", "round", "attempt", "failures")
ATTEMPT_COLUMNS = (
    "delivery_id", "attempt", "round", "outcome", "error_class", "error_code", "provider_message_id",
    "started_at", "finished_at", "next_attempt_at", "error_text",
)  # fmt: skip
AttemptKey = tuple[UUID, int]
WITH_ERROR = (DeliveryStatus.RETRYING, DeliveryStatus.FAILED)


class WriteOutcome(Enum):
    """The outcome of a result that is not refused."""

    WRITTEN = auto()
    """It is committed, or changes nothing because it was written before or comes too late."""
    LOCKED_ELSEWHERE = auto()
    """It was left out, because another transaction has locked the delivery or one of its attempts."""


WRITTEN, LOCKED_ELSEWHERE = WriteOutcome  # for code that runs for each result: `WriteOutcome.WRITTEN` takes 0.1 µs


@dataclass(frozen=True, slots=True)
class Applied:
    """The effect of a batch of results."""

    changes: Sequence[StatusChange]
    outcomes: Sequence[WriteOutcome | Refusal]
    """The outcome of each result."""


class ResultStore:
    """The deliveries and attempts in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def apply(self, reports: Sequence[Reported]) -> Applied:
        """Apply the results in one transaction, except those that are refused or whose rows are locked elsewhere.

        If the transaction fails, raise `DatabaseUnavailable` or `DataRejected`.
        """
        ids = sorted({result.delivery_id for result, _ in reports})
        id_range = {"first_id": ids[0], "last_id": ids[-1]}
        with database_errors():
            async with self._engine.begin() as connection:
                rows = (await connection.execute(LOCK, {"ids": ids, **id_range})).all()
                before = {row.id: _state(row) for row in rows}
                missing = set(ids) - before.keys()
                locked_elsewhere = await _existing(connection, missing, id_range) if missing else frozenset()
                outcomes, accepted, attempts = _decide(reports, before, locked_elsewhere)
                # An attempt with a higher number than the delivery's last one is not in the table yet, so first results
                # need no extra statement.
                if repeated := [each for each in attempts.values() if each.attempt <= before[each.delivery_id].attempt]:
                    kept, with_locked_attempts = await _lock_attempts(connection, repeated, id_range)
                    locked_elsewhere |= with_locked_attempts
                    outcomes, accepted, attempts = _decide(reports, before, locked_elsewhere, kept)
                changed = advance_all(before, accepted)
                changed_at = max((row.locked_at for row in rows), default=None)
                if changed or attempts:
                    await _write(connection, changed, attempts, {**id_range, "changed_at": changed_at})
        return Applied(_status_changes(before, changed, accepted, changed_at), outcomes)

    async def read(self, delivery_id: UUID) -> DeliveryState | None:
        """Return the delivery, or None if it does not exist."""
        row = (await execute(self._engine, READ, id=delivery_id)).one_or_none()
        return None if row is None else _state(row)


def _state(row: Row[Any]) -> DeliveryState:
    status = DeliveryStatus(row.status)
    return DeliveryState(row.id, row.notification_id, row.channel, status, row.round, row.attempt, row.failures)


def _decide(
    reports: Sequence[Reported],
    deliveries: Mapping[UUID, DeliveryState],
    locked_elsewhere: Set[UUID],
    kept: Set[AttemptKey] = frozenset(),
) -> tuple[list[WriteOutcome | Refusal], list[DeliveryResult], dict[AttemptKey, DeliveryResult]]:
    """Return each result's outcome if the transaction commits, the accepted results, and the attempts to write.

    A delivery is unknown if it is neither in `deliveries` nor `locked_elsewhere`. The stored attempts in `kept` are not
    to be overwritten.
    """
    outcomes = [
        LOCKED_ELSEWHERE
        if each.result.delivery_id in locked_elsewhere
        else refusal(deliveries.get(each.result.delivery_id), each) or WRITTEN
        for each in reports
    ]
    accepted = [each.result for each, outcome in zip(reports, outcomes, strict=True) if outcome is WRITTEN]
    attempts = best_attempts(accepted)
    for key in kept:
        attempts.pop(key, None)
    return outcomes, accepted, attempts


async def _existing(connection: AsyncConnection, ids: Set[UUID], id_range: Mapping[str, UUID]) -> Set[UUID]:
    """Return those of the deliveries that exist. If `LOCK` did not return them, another transaction has locked them."""
    return frozenset((await connection.execute(EXISTING, {"ids": list(ids), **id_range})).scalars())


async def _write(
    connection: AsyncConnection,
    deliveries: Iterable[DeliveryState],
    attempts: Mapping[AttemptKey, DeliveryResult],
    parameters: Mapping[str, object],
) -> None:
    changed = sorted(deliveries, key=attrgetter("id"))  # `WRITE` searches for the ids
    rows = [attempts[key] for key in sorted(attempts)]
    columns = _columns("changed_", CHANGED_COLUMNS, changed) | _columns("attempt_", ATTEMPT_COLUMNS, rows)
    await connection.execute(WRITE, {**columns, **parameters})


async def _lock_attempts(
    connection: AsyncConnection, repeated: Sequence[DeliveryResult], id_range: Mapping[str, UUID]
) -> tuple[Set[AttemptKey], Set[UUID]]:
    """Lock the stored attempts that `repeated` would overwrite.

    Return the attempts that it would not overwrite, and the deliveries of those that another transaction has locked.
    """
    columns = _columns("", ("delivery_id", "attempt", "outcome"), repeated)
    rows = (await connection.execute(LOCK_ATTEMPTS, {**columns, **id_range})).all()
    kept = {(row.delivery_id, row.attempt) for row in rows if not row.overwritten}
    return kept, {row.delivery_id for row in rows if row.overwritten and not row.held}


def _status_changes(
    before: Mapping[UUID, DeliveryState],
    changed: Iterable[DeliveryState],
    applied: Iterable[DeliveryResult],
    changed_at: datetime | None,
) -> list[StatusChange]:
    """Return what to publish about the `changed` deliveries, with the errors of the results that were applied."""
    errors = {(each.delivery_id, each.attempt): each for each in applied if each.error_class is not None}
    return [
        _change(state, errors.get((state.id, state.attempt)), changed_at)
        for state in changed
        # A further attempt is a change even if the status stays the same, unless the status is final.
        if (state.status is not before[state.id].status or not state.status.final)
        and state.channel in KNOWN_CHANNELS  # no subscriber of this version could read the event
    ]


def _change(state: DeliveryState, failure: DeliveryResult | None, changed_at: datetime | None) -> StatusChange:
    error = failure if failure is not None and state.status in WITH_ERROR else None
    return StatusChange.model_validate(
        {
            "delivery_id": state.id, "notification_id": state.notification_id, "channel": state.channel,
            "status": state.status, "round": state.round, "attempt": state.attempt, "changed_at": changed_at,
            "error_class": error and error.error_class, "error_code": error and error.error_code,
        }
    )  # fmt: skip


def _columns(prefix: str, names: Sequence[str], rows: Sequence[object]) -> dict[str, object]:
    """Return the parameters of a statement for `rows`: one array per column."""
    return {f"{prefix}{name}": list(map(attrgetter(name), rows)) for name in names}
