"""Store retry jobs, each of which retries many deliveries; `DeliveryRetries.advance` processes them."""

from datetime import timedelta
from uuid import UUID

from notify_common.contracts.ids import first_id_at, new_id, to_millisecond
from notify_common.runtime.clock import utc_now
from notify_database.engine import database_errors, execute
from notify_database.models import RetryJob
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.deliveries.filters import DEFAULT_WINDOW
from notify_gateway.deliveries.retries import COUNT
from notify_gateway.deliveries.schemas import RetryFilter, RetryProgress
from notify_gateway.errors import TooManyRetryJobs

MAX_UNFINISHED = 100  # jobs of one tenant
LIFETIME = timedelta(days=30)  # of a finished job
MAX_FINISHED = 1_000  # of a tenant; one that starts jobs again and again must not fill the database
JOBS_PER_CLEANUP = 1_000
EXCESS_PER_START = 10  # so that a start does not take long if an earlier version has kept very many

DELETE_FINISHED = text("""
    DELETE FROM retry_jobs WHERE id IN (
        SELECT id FROM retry_jobs WHERE finished_at < now() - CAST(:lifetime AS interval)
        LIMIT :limit FOR UPDATE SKIP LOCKED
    )
""")
# The order is that of the jobs' last turns, because these have an index, unlike the times at which the jobs finished.
DELETE_EXCESS = text(f"""
    DELETE FROM retry_jobs WHERE id IN (
        SELECT id FROM retry_jobs JOIN (
            SELECT id FROM retry_jobs WHERE tenant = :tenant AND finished_at IS NOT NULL
            ORDER BY advanced_at DESC OFFSET {MAX_FINISHED} LIMIT {EXCESS_PER_START}
        ) AS excess USING (id) FOR UPDATE OF retry_jobs SKIP LOCKED
    )
""")  # noqa: S608 - constants


class RetryJobs:
    """The retry jobs in PostgreSQL."""

    def __init__(self, engine: AsyncEngine, share: TenantShare, reads: TenantReads) -> None:
        self._engine = engine
        self._share = share
        self._reads = reads

    async def start(self, job: RetryJob) -> RetryProgress:
        """Store the job, which a gateway then processes in the background; may raise `TooManyRetryJobs`.

        Of the tenant's finished jobs, only the latest `MAX_FINISHED` are kept.
        """
        # Gateways choose the next chunk among all unfinished jobs, so that one tenant's jobs must not become very many.
        # Requests at the same time may exceed the limit by one each, and a tenant has only a few slots for them.
        unfinished = select(func.count()).where(RetryJob.tenant == job.tenant, RetryJob.finished_at.is_(None))
        async with self._share.slot(job.tenant):
            with database_errors():
                async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
                    if (await session.execute(unfinished)).scalar_one() >= MAX_UNFINISHED:
                        detail = f"This tenant has {MAX_UNFINISHED} unfinished retry jobs; wait until one has finished."
                        raise TooManyRetryJobs(detail)
                    session.add(job)
                    await session.execute(DELETE_EXCESS, {"tenant": job.tenant})
        return RetryProgress.model_validate(job)

    async def find(self, tenant: str, job_id: UUID) -> RetryProgress | None:
        """Return the job and its progress, or None if the tenant has no job with this id."""
        statement = select(RetryJob).where(RetryJob.id == job_id, RetryJob.tenant == tenant)
        job = (await self._reads.execute(tenant, statement)).one_or_none()
        return None if job is None else RetryProgress.model_validate(job)

    async def count(self, job: RetryJob) -> int:
        """Return the number of failed deliveries that the job would retry now."""
        condition = {"channel": job.channel, "error_class": job.error_class}
        counted = await self._reads.execute(job.tenant, COUNT, last_id=job.last_id, end_id=job.end_id, **condition)
        return int(counted.scalar_one())


async def delete_finished_jobs(engine: AsyncEngine) -> bool:
    """Delete up to `JOBS_PER_CLEANUP` jobs that finished long ago; return True if there may be more."""
    deleted = await execute(engine, DELETE_FINISHED, lifetime=LIFETIME, limit=JOBS_PER_CLEANUP)
    return deleted.rowcount == JOBS_PER_CLEANUP


def new_job(tenant: str, request: RetryFilter) -> RetryJob:
    """Build the job that `request` asks for."""
    now = to_millisecond(utc_now())
    end = request.created_before or now
    return RetryJob(
        id=new_id(now),
        tenant=tenant,
        channel=request.channel,
        error_class=request.error_class,
        last_id=first_id_at(request.created_after or end - DEFAULT_WINDOW),
        end_id=first_id_at(end),
        retried=0,
        created_at=now,
        finished_at=None,
    )
