"""Retry failed deliveries: they go back through the outbox as a new round, one at once or many in the background."""

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_database.engine import database_errors
from notify_database.models import RetryJob
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.outbox.changes import status_changes

log = logging.getLogger(__name__)

DELIVERIES_PER_TRANSACTION = 5_000  # looked at; those that failed are put back

# Expects `chosen (id)`. A new budget, attempts numbered on, the history kept.
PUT_BACK = """
    again AS (
        UPDATE deliveries
        SET status = 'pending', reason = NULL, round = round + 1, failures = 0, updated_at = clock_timestamp()
        FROM chosen WHERE deliveries.id = chosen.id AND deliveries.status = 'failed'
        RETURNING deliveries.id, deliveries.notification_id, deliveries.channel, deliveries.round, deliveries.attempt,
                  deliveries.updated_at
    ), queued AS (
        INSERT INTO outbox (delivery_id, due_at, leased_until, round)
        SELECT id, now(), NULL, round FROM again
        -- Left by a relay that died between the confirm and the delete of an earlier round.
        ON CONFLICT (delivery_id) DO UPDATE
            SET due_at = excluded.due_at, leased_until = NULL, round = excluded.round
    )
"""
RETRY_ONE = text(f"""
    WITH chosen AS (
        SELECT d.id FROM deliveries d JOIN notifications n ON n.id = d.notification_id
        WHERE d.id = :id AND (CAST(:tenant AS text) IS NULL OR n.tenant = :tenant)
    ), {PUT_BACK}
    SELECT * FROM again
""")  # noqa: S608 - a constant
# The error class is that of the last attempt.
MATCHING = """
    JOIN notifications n ON n.id = d.notification_id
    LEFT JOIN attempts a ON a.delivery_id = d.id AND a.attempt = d.attempt
    WHERE d.status = 'failed' AND n.tenant = f.tenant
      AND (f.channel IS NULL OR d.channel = f.channel)
      AND (f.error_class IS NULL OR a.error_class = f.error_class)
"""
COUNT = text(f"""
    SELECT count(*)
    FROM (SELECT CAST(:tenant AS text), CAST(:channel AS text), CAST(:error_class AS text))
             AS f (tenant, channel, error_class)
    JOIN deliveries d ON d.id > CAST(:last_id AS uuid) AND d.id < CAST(:end_id AS uuid)
    {MATCHING}
""")  # noqa: S608 - a constant
# One transaction does its part and moves the job on: a crash repeats nothing and forgets nothing.
RETRY_CHUNK = text(f"""
    WITH f AS MATERIALIZED (
        SELECT * FROM retry_jobs WHERE finished_at IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
    ), chunk AS MATERIALIZED (
        -- Bounds that the planner sees as values, so that it reads one part of the index and no more.
        SELECT * FROM deliveries
        WHERE id > (SELECT last_id FROM f) AND id < (SELECT end_id FROM f) ORDER BY id LIMIT :size
    ), chosen AS (
        SELECT d.id FROM f CROSS JOIN chunk d {MATCHING}
    ), {PUT_BACK}, moved AS (
        UPDATE retry_jobs
        SET retried = retry_jobs.retried + (SELECT count(*) FROM again),
            last_id = coalesce((SELECT id FROM chunk ORDER BY id DESC LIMIT 1), retry_jobs.last_id),
            finished_at = CASE WHEN (SELECT count(*) FROM chunk) < :size THEN now() END
        FROM f WHERE retry_jobs.id = f.id
        RETURNING retry_jobs.id
    )
    SELECT again.* FROM moved LEFT JOIN again ON true
""")  # noqa: S608 - a constant


class DeliveryRetries:
    """Puts failed deliveries back into the outbox and publishes what has changed."""

    def __init__(
        self,
        engine: AsyncEngine,
        publish_changes: Callable[[Sequence[StatusChange]], None] = lambda _: None,
        *,
        chunk_size: int = DELIVERIES_PER_TRANSACTION,
    ) -> None:
        self._engine = engine
        self._publish_changes = publish_changes
        self._chunk_size = chunk_size

    async def retry(self, tenant: str | None, delivery_id: UUID) -> bool:
        """Put one back; return whether it was a failed delivery of the tenant (None: of any tenant)."""
        with database_errors():
            async with self._engine.begin() as connection:
                rows = (await connection.execute(RETRY_ONE, {"id": delivery_id, "tenant": tenant})).all()
        changes = status_changes(rows, DeliveryStatus.PENDING)
        for change in changes:
            log.info("put back", extra=change.model_dump(mode="json", exclude={"status"}))
        self._publish_changes(changes)
        return bool(changes)

    async def count(self, job: RetryJob) -> int:
        """Return how many failed deliveries the job would put back now."""
        parameters = {
            "tenant": job.tenant, "channel": job.channel, "error_class": job.error_class,
            "last_id": job.last_id, "end_id": job.end_id,
        }  # fmt: skip
        with database_errors():
            async with self._engine.connect() as connection:
                count: int = (await connection.execute(COUNT, parameters)).scalar_one()
        return count

    async def advance(self) -> bool:
        """Do one chunk of the oldest job that no other gateway works on; return False if there is none."""
        with database_errors():
            async with self._engine.begin() as connection:
                rows = (await connection.execute(RETRY_CHUNK, {"size": self._chunk_size})).all()
        # A chunk in which nothing was put back is one row without an id.
        self._publish_changes(status_changes([row for row in rows if row.id], DeliveryStatus.PENDING))
        return bool(rows)
