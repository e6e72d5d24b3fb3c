"""Apply any number of first results with two statements: one reads the deliveries, and one writes."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any
from uuid import UUID

from notify_common.contracts.channels import KNOWN_CHANNELS
from notify_common.contracts.messages import DeliveryResult, DeliveryStatus, StatusChange
from notify_database.engine import autocommitting, database_errors, execute
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_status_writer.delivery_state import (
    DeliveryState,
    Refusal,
    Reported,
    advance,
    best_attempts,
    refusal,
)

# The statements name the range of ids, because PostgreSQL does not prune partitions by `ANY` or by a join.
READ = text("""
    SELECT id, notification_id, channel, status, round, attempt, failures FROM deliveries
    WHERE id = ANY(CAST(:ids AS uuid[])) AND id BETWEEN :first_id AND :last_id
""")
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
# A delivery's values are looked up by binary search in the sorted ids. PostgreSQL would plan a join badly while the
# newest rows are not in its statistics: it would compare each result with all deliveries in the range of ids.
POSITION = "width_bucket(id, CAST(:ids AS uuid[]))"
# Deliveries that have changed since they were read, or that others have locked, are left out, so that an open
# transaction of an operator delays only their results. The time is taken after all locks are held, so that no change
# gets a time that a subscriber has already passed.
WRITE = text(f"""
    WITH unchanged AS MATERIALIZED (
        SELECT id FROM deliveries
        WHERE id = ANY(CAST(:ids AS uuid[])) AND id BETWEEN :first_id AND :last_id
          AND status = (CAST(:old_status AS text[]))[{POSITION}]
          AND round = (CAST(:old_round AS integer[]))[{POSITION}]
          AND attempt = (CAST(:old_attempt AS integer[]))[{POSITION}]
          AND failures = (CAST(:old_failures AS integer[]))[{POSITION}]
        FOR NO KEY UPDATE SKIP LOCKED
    ), written AS MATERIALIZED (
        SELECT array_agg(id ORDER BY id) AS ids, clock_timestamp() AS changed_at FROM unchanged
    ), changed AS (
        UPDATE deliveries
        SET status = (CAST(:status AS text[]))[{POSITION}],
            round = (CAST(:round AS integer[]))[{POSITION}],
            attempt = (CAST(:attempt AS integer[]))[{POSITION}],
            failures = (CAST(:failures AS integer[]))[{POSITION}],
            reason = CASE WHEN (CAST(:status AS text[]))[{POSITION}] = 'cancelled' THEN reason END,
            updated_at = (SELECT changed_at FROM written)
        WHERE id = ANY(CAST((SELECT ids FROM written) AS uuid[])) AND id BETWEEN :first_id AND :last_id
          AND (CAST(:changes AS boolean[]))[{POSITION}]
    ), reported AS (
        INSERT INTO attempts
            (delivery_id, attempt, round, outcome, error_class, error_code, provider_message_id,
             started_at, finished_at, next_attempt_at, error_text)
        SELECT new.* FROM unnest(
            CAST(:attempt_delivery_id AS uuid[]), CAST(:attempt_attempt AS integer[]),
            CAST(:attempt_round AS integer[]), CAST(:attempt_outcome AS text[]), CAST(:attempt_error_class AS text[]),
            CAST(:attempt_error_code AS text[]), CAST(:attempt_provider_message_id AS text[]),
            CAST(:attempt_started_at AS timestamptz[]), CAST(:attempt_finished_at AS timestamptz[]),
            CAST(:attempt_next_attempt_at AS timestamptz[]), CAST(:attempt_error_text AS text[])
        ) AS new (delivery_id)
        WHERE delivery_id = (SELECT ids FROM written)[width_bucket(delivery_id, (SELECT ids FROM written))]
        ON CONFLICT (delivery_id, attempt) DO UPDATE SET
            round = excluded.round, outcome = excluded.outcome, error_class = excluded.error_class,
            error_code = excluded.error_code, provider_message_id = excluded.provider_message_id,
            started_at = excluded.started_at, finished_at = excluded.finished_at,
            next_attempt_at = excluded.next_attempt_at, error_text = excluded.error_text
        WHERE {OVERWRITES.format(new="excluded")}
    )
    SELECT coalesce(ids, '{{}}') AS ids, changed_at FROM written
""")  # noqa: S608 - constants

STATE_COLUMNS = ("status", "round", "attempt", "failures")
ATTEMPT_COLUMNS = (
    "delivery_id", "attempt", "round", "outcome", "error_class", "error_code", "provider_message_id",
    "started_at", "finished_at", "next_attempt_at", "error_text",
)  # fmt: skip
AttemptKey = tuple[UUID, int]
WITH_ERROR = (DeliveryStatus.RETRYING, DeliveryStatus.FAILED)


@dataclass(frozen=True, slots=True)
class Applied:
    """The effect of a batch of results."""

    changes: Sequence[StatusChange]
    refusals: Sequence[Refusal | None]
    """For each result, None or why it must never be applied."""
    deferred: Set[UUID]
    """The deliveries whose results were left out, because they have just changed, or because another transaction has
    locked their rows or attempts."""


class ResultStore:
    """The deliveries and attempts in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._autocommitting_engine = autocommitting(engine)

    async def apply(self, reports: Sequence[Reported]) -> Applied:
        """Apply all results in one transaction. If that fails, raise `DatabaseUnavailable` or `DataRejected`."""
        before = await self._read({result.delivery_id for result, _ in reports})
        refusals = [refusal(before.get(each.result.delivery_id), each) for each in reports]
        accepted = [result for (result, _), refused in zip(reports, refusals, strict=True) if refused is None]
        if not accepted:
            return Applied([], refusals, frozenset())
        # An attempt above the delivery's last one cannot be stored, so first results cost no further statement.
        repeated = [
            each for each in best_attempts(accepted).values() if each.attempt <= before[each.delivery_id].attempt
        ]
        with database_errors():
            if not repeated:
                async with self._autocommitting_engine.begin() as connection:
                    changes, deferred = await _write(connection, before, accepted)
            else:
                async with self._engine.begin() as connection:
                    kept, locked = await _lock_attempts(connection, repeated)
                    accepted = [each for each in accepted if each.delivery_id not in locked]
                    changes, deferred = await _write(connection, before, accepted, kept)
                    deferred |= locked
        return Applied(changes, refusals, deferred)

    async def read(self, delivery_id: UUID) -> DeliveryState | None:
        """Return the delivery, or None if it does not exist."""
        return (await self._read({delivery_id})).get(delivery_id)

    async def _read(self, ids: Set[UUID]) -> dict[UUID, DeliveryState]:
        """Return the deliveries that exist."""
        parameters = {"ids": list(ids), "first_id": min(ids), "last_id": max(ids)}
        rows = (await execute(self._autocommitting_engine, READ, **parameters)).all()
        return {row.id: _state(row) for row in rows}


def _state(row: Row[Any]) -> DeliveryState:
    status = DeliveryStatus(row.status)
    return DeliveryState(row.id, row.notification_id, row.channel, status, row.round, row.attempt, row.failures)


async def _write(
    connection: AsyncConnection,
    before: Mapping[UUID, DeliveryState],
    accepted: Sequence[DeliveryResult],
    kept: Set[AttemptKey] = frozenset(),
) -> tuple[list[StatusChange], Set[UUID]]:
    """Write the accepted results, except for the attempts to be kept.

    Return the status changes, and the deliveries whose results must be tried again.
    """
    after: dict[UUID, DeliveryState] = {}
    for result in accepted:
        after[result.delivery_id] = advance(after.get(result.delivery_id) or before[result.delivery_id], result)
    attempts = {key: each for key, each in best_attempts(accepted).items() if key not in kept}
    if not attempts and all(state == before[each] for each, state in after.items()):
        return [], frozenset()
    ids = sorted(after)  # `WRITE` searches for them
    parameters = {
        "ids": ids,
        "first_id": ids[0],
        "last_id": ids[-1],
        "changes": [after[each] != before[each] for each in ids],
        **_columns("old_", STATE_COLUMNS, [before[each] for each in ids]),
        **_columns("", STATE_COLUMNS, [after[each] for each in ids]),
        **_columns("attempt_", ATTEMPT_COLUMNS, [attempts[key] for key in sorted(attempts)]),
    }
    written = (await connection.execute(WRITE, parameters)).one()
    errors = {(each.delivery_id, each.attempt): each for each in accepted if each.error_class is not None}
    changes = [
        _change(state, errors.get((state.id, state.attempt)), written.changed_at)
        for state in map(after.__getitem__, written.ids)
        if _is_change(before[state.id], state)
    ]
    return changes, after.keys() - set(written.ids)


def _is_change(before: DeliveryState, after: DeliveryState) -> bool:
    """Return True if subscribers are told: of each new status, and of each attempt until the status is final."""
    return (
        after != before
        and (after.status is not before.status or not after.status.final)
        and after.channel in KNOWN_CHANNELS  # no subscriber of this version could read the event
    )


async def _lock_attempts(
    connection: AsyncConnection, repeated: Sequence[DeliveryResult]
) -> tuple[Set[AttemptKey], Set[UUID]]:
    """Lock the stored attempts that `repeated` would overwrite.

    Return the attempts that it would not overwrite, and the deliveries of those that another transaction has locked.
    """
    ids = [each.delivery_id for each in repeated]
    columns = _columns("", ("delivery_id", "attempt", "outcome"), repeated)
    rows = (await connection.execute(LOCK_ATTEMPTS, {**columns, "first_id": min(ids), "last_id": max(ids)})).all()
    kept = {(row.delivery_id, row.attempt) for row in rows if not row.overwritten}
    return kept, {row.delivery_id for row in rows if row.overwritten and not row.held}


def _change(state: DeliveryState, failure: DeliveryResult | None, changed_at: datetime) -> StatusChange:
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
