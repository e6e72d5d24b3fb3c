"""Second chances: failed deliveries go back through the outbox as a new round, one at once or many by and by."""

from datetime import timedelta
from uuid import UUID

from notify_common.messages import DeliveryStatus, StatusChange
from notify_common.process import utc_now
from notify_database.engine import database_errors
from notify_database.id_ranges import first_id_at
from notify_database.models import RetryJob
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from notify_gateway.ids import new_id, to_millisecond
from notify_gateway.schemas import RetryJobView, RetryRequest
from notify_gateway.status_changes import status_changes

DEFAULT_WINDOW = timedelta(hours=24)
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
    """The statements of an operator's retries."""

    def __init__(self, engine: AsyncEngine, *, part: int = DELIVERIES_PER_TRANSACTION) -> None:
        self._engine = engine
        self._part = part

    async def retry(self, tenant: str | None, delivery_id: UUID) -> list[StatusChange]:
        """Put one back; nothing where it is not a failed delivery of the tenant (None: of any)."""
        with database_errors():
            async with self._engine.begin() as connection:
                rows = (await connection.execute(RETRY_ONE, {"id": delivery_id, "tenant": tenant})).all()
        return status_changes(rows, DeliveryStatus.PENDING)

    async def count(self, tenant: str, wanted: RetryRequest) -> int:
        """How many failed deliveries match."""
        job = _job(tenant, wanted)
        parameters = {
            "tenant": tenant, "channel": job.channel, "error_class": job.error_class,
            "last_id": job.last_id, "end_id": job.end_id,
        }  # fmt: skip
        with database_errors():
            async with self._engine.connect() as connection:
                count: int = (await connection.execute(COUNT, parameters)).scalar_one()
        return count

    async def start(self, tenant: str, wanted: RetryRequest) -> RetryJobView:
        """Store the job; any gateway goes on with it from there."""
        job = _job(tenant, wanted)
        view = RetryJobView.model_validate(job)
        with database_errors():
            async with AsyncSession(self._engine) as session, session.begin():
                session.add(job)
        return view

    async def job(self, tenant: str, job_id: UUID) -> RetryJobView | None:
        """How far the tenant's job is, or None where there is none."""
        with database_errors():
            async with AsyncSession(self._engine) as session:
                job = await session.scalar(select(RetryJob).where(RetryJob.id == job_id, RetryJob.tenant == tenant))
        return None if job is None else RetryJobView.model_validate(job)

    async def advance(self) -> list[StatusChange] | None:
        """Do a part of the oldest job that nobody else is at; None where there is none."""
        with database_errors():
            async with self._engine.begin() as connection:
                rows = (await connection.execute(RETRY_CHUNK, {"size": self._part})).all()
        # A part in which nothing was put back is one row of nothing.
        return status_changes([row for row in rows if row.id], DeliveryStatus.PENDING) if rows else None


def _job(tenant: str, wanted: RetryRequest) -> RetryJob:
    now = to_millisecond(utc_now())
    end = wanted.created_before or now
    return RetryJob(
        id=new_id(now),
        tenant=tenant,
        channel=wanted.channel,
        error_class=wanted.error_class,
        last_id=first_id_at(wanted.created_after or end - DEFAULT_WINDOW),
        end_id=first_id_at(end),
        retried=0,
        created_at=now,
        finished_at=None,
    )
