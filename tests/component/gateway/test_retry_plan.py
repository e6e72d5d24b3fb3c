"""What PostgreSQL reads for a turn of the retry jobs, and for a new job."""

import pytest
from notify_gateway.deliveries.retries import TAKE_TURN
from notify_gateway.deliveries.retry_jobs import DELETE_EXCESS, EXCESS_PER_START, MAX_FINISHED
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.plans import executed_nodes, recorded, rows_read

UNFINISHED = 5
JOBS = """
    INSERT INTO retry_jobs (id, tenant, last_id, end_id, retried, created_at, finished_at, advanced_at)
    SELECT gen_random_uuid(), 'busy', gen_random_uuid(), gen_random_uuid(), 0, now(),
           CASE WHEN number > {unfinished} THEN now() END, now() - number * interval '1 s'
    FROM generate_series(1, 5000) AS number
"""


@pytest.fixture
async def jobs(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(JOBS.format(unfinished=UNFINISHED)))
        await connection.execute(text("VACUUM ANALYZE retry_jobs"))


@pytest.mark.usefixtures("jobs")
async def test_turn_reads_few_of_the_finished_jobs(engine: AsyncEngine) -> None:
    statement = str(TAKE_TURN).replace(":longest_pause", "'5 s'")
    nodes = await executed_nodes(engine, (statement, ()))
    assert rows_read(nodes, "retry_jobs") <= 4 * UNFINISHED


@pytest.mark.usefixtures("jobs")
async def test_new_job_reads_few_of_the_finished_jobs_even_if_an_earlier_version_has_kept_very_many(
    engine: AsyncEngine,
) -> None:
    with recorded(engine) as statements:
        async with engine.connect() as connection:
            await connection.execute(DELETE_EXCESS, {"tenant": "busy"})
    nodes = await executed_nodes(engine, statements[-1])
    assert rows_read(nodes, "retry_jobs") <= MAX_FINISHED + UNFINISHED + 3 * EXCESS_PER_START
