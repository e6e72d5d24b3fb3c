"""What PostgreSQL reads for a turn of the retry jobs."""

from notify_gateway.deliveries.retries import TAKE_TURN
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.plans import executed_nodes, rows_read

UNFINISHED = 5
JOBS = """
    INSERT INTO retry_jobs (id, tenant, last_id, end_id, retried, created_at, finished_at, advanced_at)
    SELECT gen_random_uuid(), 'busy', gen_random_uuid(), gen_random_uuid(), 0, now(),
           CASE WHEN number > {unfinished} THEN now() END, now() - number * interval '1 s'
    FROM generate_series(1, 5000) AS number
"""


async def test_turn_reads_few_of_the_finished_jobs(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(JOBS.format(unfinished=UNFINISHED)))
        await connection.execute(text("VACUUM ANALYZE retry_jobs"))
    nodes = await executed_nodes(engine, (str(TAKE_TURN), ()))
    assert rows_read(nodes, "retry_jobs") <= 4 * UNFINISHED
