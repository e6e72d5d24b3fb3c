"""Retry failed deliveries: each starts a new round and goes through the outbox again.

A single delivery is retried immediately. A retry job retries many deliveries in the background, chunk by chunk; it is
stored in PostgreSQL, so that any gateway can continue it.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import timedelta
from typing import Any
from uuid import UUID

from notify_common.contracts.channels import KNOWN_CHANNELS, Channel
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_database.engine import database_errors, execute
from notify_database.errors import ROW_ERRORS, StatementTimedOut
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.database import TenantShare
from notify_gateway.deliveries.chunk_sizes import ChunkSizes
from notify_gateway.deliveries.schemas import Delivery
from notify_gateway.errors import RetryRejected
from notify_gateway.outbox.store import status_changes

log = logging.getLogger(__name__)

MAX_ROUNDS = 1_000  # of a delivery, whose history could otherwise grow forever
DELIVERIES_PER_TRANSACTION = 5_000  # deliveries examined; only the failed ones are retried
# The queue of a channel is shared. Without a pause, the retry job of one tenant would put everything into it at once,
# and all other deliveries would wait until a sender has handled that, which takes about a millisecond each.
PACE = timedelta(milliseconds=1)

# Deliveries over other channels wait for the version that knows them.
ON_KNOWN_CHANNEL = f"d.channel IN ({', '.join(repr(channel.value) for channel in KNOWN_CHANNELS)})"
RETRYABLE = f"d.status = 'failed' AND d.round < {MAX_ROUNDS}"
# Starts a new round for each retryable delivery in `chosen (id)`. The failure count is reset to 0, but the attempt
# numbers continue, so that the history of earlier rounds is kept. Deliveries are locked in id order, as the status
# writer does, so that the two cannot deadlock.
START_ROUND = f"""
    locked AS (
        SELECT d.id FROM deliveries d JOIN chosen ON chosen.id = d.id
        WHERE {RETRYABLE} ORDER BY d.id FOR NO KEY UPDATE OF d
    ), restarted AS (
        UPDATE deliveries
        SET status = 'pending', reason = NULL, round = round + 1, failures = 0, updated_at = clock_timestamp()
        FROM locked WHERE deliveries.id = locked.id AND deliveries.status = 'failed'
        RETURNING deliveries.id, deliveries.notification_id, deliveries.channel, deliveries.round, deliveries.attempt,
                  deliveries.updated_at
    ), queued AS (
        INSERT INTO outbox (delivery_id, channel, due_at, leased_until, round)
        SELECT id, channel, now(), NULL, round FROM restarted
        -- If a relay died between the confirm and the delete, the row of an earlier round is still there.
        ON CONFLICT (delivery_id) DO UPDATE
            SET due_at = excluded.due_at, due_since = NULL, leased_until = NULL, round = excluded.round
    )
"""  # noqa: S608 - a constant
RETRY_ONE = text(f"""
    WITH chosen AS (
        SELECT d.id FROM deliveries d JOIN notifications n ON n.id = d.notification_id
        WHERE d.id = :id AND (CAST(:tenant AS text) IS NULL OR n.tenant = :tenant)
          AND (CAST(:channel AS text) IS NULL OR d.channel = :channel) AND {ON_KNOWN_CHANNEL}
    ), {START_ROUND}
    SELECT * FROM restarted
""")  # noqa: S608 - a constant
# A job's error class must match the error class of the delivery's last attempt.
MATCHING = f"""
    JOIN notifications n ON n.id = d.notification_id
    LEFT JOIN attempts a ON a.delivery_id = d.id AND a.attempt = d.attempt
    WHERE {RETRYABLE} AND n.tenant = f.tenant AND {ON_KNOWN_CHANNEL}
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
# Tenants take turns, and so do the jobs of a tenant, because otherwise a large job would block all later ones. The
# turns of finished jobs count, too, because a tenant with many small jobs must not get more turns than a tenant with a
# single job. A turn is committed before its chunk, so that a job whose chunks fail does not have the next turn again.
# Until its chunk is committed, the tenant pauses as for a whole chunk; otherwise each gateway would restart as many
# deliveries of its other jobs in that time.
# A turn in the future is the end of a pause, but if no pause is that long, PostgreSQL's clock was fast at that time and
# has been corrected. The turn is compared with `now()`, because for a time that changes within the statement,
# PostgreSQL would read all jobs of the tenant.
TAKE_TURN = text("""
    UPDATE retry_jobs SET advanced_at = now() + CAST(:longest_pause AS interval)
    WHERE id = (
        SELECT id FROM retry_jobs AS job WHERE finished_at IS NULL
            AND NOT EXISTS (
                SELECT FROM retry_jobs WHERE tenant = job.tenant
                    AND advanced_at > now() AND advanced_at <= now() + CAST(:longest_pause AS interval)
            )
        ORDER BY (
            SELECT max(advanced_at) FROM retry_jobs WHERE tenant = job.tenant AND advanced_at <= now()
        ) NULLS FIRST,
                 coalesce(advanced_at, created_at), id
        LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING id
""")
END_PAUSE = text("UPDATE retry_jobs SET advanced_at = clock_timestamp() WHERE id = :job")
# Somebody may hold the lock on a delivery for hours. Meanwhile the other jobs have their turns.
LIMIT_LOCK_WAIT = text("SET LOCAL lock_timeout = '1s'")
# One statement retries a chunk and advances the job, so that a crash neither repeats nor skips a delivery.
RETRY_CHUNK = text(f"""
    WITH f AS MATERIALIZED (
        SELECT * FROM retry_jobs WHERE id = :job AND finished_at IS NULL FOR UPDATE SKIP LOCKED
    ), chunk AS MATERIALIZED (
        -- The bounds are scalar subqueries, so that PostgreSQL scans only this range of the index.
        SELECT * FROM deliveries
        WHERE id > (SELECT last_id FROM f) AND id < (SELECT end_id FROM f) ORDER BY id LIMIT :size
    ), chosen AS (
        SELECT d.id FROM f CROSS JOIN chunk d {MATCHING}
    ), {START_ROUND}, advanced AS (
        UPDATE retry_jobs
        SET retried = retry_jobs.retried + (SELECT count(*) FROM restarted),
            advanced_at = clock_timestamp() + CAST(:pace AS interval) * (SELECT count(*) FROM restarted),
            last_id = coalesce((SELECT id FROM chunk ORDER BY id DESC LIMIT 1), retry_jobs.last_id),
            finished_at = CASE WHEN (SELECT count(*) FROM chunk) < :size THEN now() END
        FROM f WHERE retry_jobs.id = f.id
        RETURNING retry_jobs.id
    )
    SELECT restarted.* FROM advanced LEFT JOIN restarted ON true
""")  # noqa: S608 - a constant


def retry_rejected(delivery: Delivery) -> RetryRejected:
    """Return the error for a delivery that could not be retried."""
    if delivery.status is DeliveryStatus.FAILED and delivery.round >= MAX_ROUNDS:
        return RetryRejected(f"This delivery has been retried {MAX_ROUNDS - 1} times, which is the maximum.")
    return RetryRejected(f"Only a failed delivery can be retried; this one is {delivery.status}.")


class DeliveryRetries:
    """Retries failed deliveries, one by one or in retry jobs, and publishes the status changes.

    The jobs of a tenant pause for `pace` after each delivery that one of them has retried.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        publish_changes: Callable[[Sequence[StatusChange]], None] = lambda _: None,
        *,
        share: TenantShare | None = None,
        chunk_size: int = DELIVERIES_PER_TRANSACTION,
        pace: timedelta = timedelta(0),
    ) -> None:
        self._engine = engine
        self._share = share
        self._publish_changes = publish_changes
        self._chunk_sizes = ChunkSizes[UUID](chunk_size)
        self._pace = pace
        self._longest_pause = pace * chunk_size

    async def retry(self, tenant: str | None, delivery_id: UUID, *, channel: Channel | None = None) -> bool:
        """Retry one delivery, and return True.

        Return False unless it can be retried and belongs to `tenant` and `channel` (None means any).
        """
        slot: AbstractAsyncContextManager[None] = nullcontext()
        if self._share is not None and tenant is not None:
            slot = self._share.slot(tenant)
        async with slot:
            rows = await execute(self._engine, RETRY_ONE, id=delivery_id, tenant=tenant, channel=channel)
        changes = status_changes(rows, DeliveryStatus.PENDING)
        for change in changes:
            log.info("delivery retried", extra=change.model_dump(mode="json", exclude={"status"}))
        self._publish_changes(changes)
        return bool(changes)

    async def advance(self) -> bool:
        """Process one chunk of the next job that no other gateway is processing; return False if no job can go on."""
        job = (await execute(self._engine, TAKE_TURN, longest_pause=self._longest_pause)).scalar_one_or_none()
        if job is None:
            return False
        try:
            rows = await self._retry_chunk(job)
        except (*ROW_ERRORS, StatementTimedOut):
            await execute(self._engine, END_PAUSE, job=job)  # nothing was restarted
            raise
        # A chunk in which nothing was retried yields a single row without an id.
        self._publish_changes(status_changes([row for row in rows if row.id], DeliveryStatus.PENDING))
        return bool(rows)

    async def _retry_chunk(self, job: UUID) -> Sequence[Row[Any]]:
        with self._chunk_sizes.next(job) as size, database_errors():
            async with self._engine.begin() as connection:
                await connection.execute(LIMIT_LOCK_WAIT)
                parameters = {"job": job, "size": size, "pace": self._pace}
                return (await connection.execute(RETRY_CHUNK, parameters)).all()
