"""What PostgreSQL reads and writes for a batch of results."""

import pytest
from notify_common.contracts.messages import DeliveryResult, Outcome
from notify_common.runtime.clock import utc_now
from notify_database.engine import ROWS_BY_KEY, PostgresSettings, create_engine
from notify_status_writer.delivery_state import Reported
from notify_status_writer.result_store import ResultStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.plans import executed_nodes, recorded, rows_read, scans

DELIVERIES = 2_000
RESULTS = 20
FILL = text("""
    INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
    SELECT id, id, 'telegram', 'pending', 1, 0, 0, now() FROM (
        SELECT CAST(lpad(to_hex(CAST(extract(epoch FROM now()) * 1000 AS bigint) - 60000 + number), 12, '0')
                    || '70008000000000000000' AS uuid) AS id
        FROM generate_series(1, CAST(:deliveries AS integer)) AS number
    ) AS ids
""")
PARTITION = text("SELECT DISTINCT tableoid::regclass::text FROM deliveries")
IDS = text("SELECT id FROM deliveries ORDER BY id")


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_write_reads_only_the_deliveries_of_its_results(
    engine: AsyncEngine, postgres: PostgresSettings, plans: str
) -> None:
    """The statistics do not contain the deliveries, because these are new."""
    async with engine.begin() as connection:
        await connection.execute(text("ANALYZE deliveries, attempts"))
        await connection.execute(FILL, {"deliveries": DELIVERIES})
    async with engine.connect() as connection:
        ids = (await connection.execute(IDS)).scalars().all()[:: DELIVERIES // RESULTS]
        partition = (await connection.execute(PARTITION)).scalar_one()
    now = utc_now()
    writer = create_engine(postgres, pool_size=1, planner={**ROWS_BY_KEY, "plan_cache_mode": plans})
    with recorded(writer) as statements:
        await ResultStore(writer).apply(
            [
                Reported(
                    DeliveryResult(
                        delivery_id=each, round=1, attempt=1, failures=0, outcome=Outcome.SENT, started_at=now,
                        finished_at=now,
                    ),
                    None,
                )
                for each in ids
            ]
        )  # fmt: skip
    _lock, write = statements
    nodes = await executed_nodes(writer, write)
    assert rows_read(nodes, "deliveries") == RESULTS
    assert {scan["Relation Name"] for scan in scans(nodes, "deliveries")} == {partition}
    await writer.dispose()
