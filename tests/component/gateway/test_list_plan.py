"""What PostgreSQL reads for a list of a tenant's notifications."""

from collections.abc import Iterator
from typing import Any

import pytest
from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.notifications.schemas import ListQuery
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import Json

OURS = 2_000  # notifications, which are older than those of the other tenant
THEIRS = 20_000
FILL = text("""
    WITH numbers AS (
        SELECT number, CAST(lpad(to_hex(CAST(extract(epoch FROM now()) * 1000 AS bigint) - 3600000 + number), 12, '0')
                            || '7000800000000000000' || number % 10 AS uuid) AS id
        FROM generate_series(1, CAST(:ours AS integer) + :theirs) AS number
    ), n AS (
        INSERT INTO notifications (id, tenant, user_id, message, created_at)
        SELECT id, CASE WHEN number <= :ours THEN 'ours' ELSE 'theirs' END, number, 'x', now() FROM numbers
    )
    INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
    SELECT id, id, CASE number % 5 WHEN 0 THEN 'email' ELSE 'telegram' END,
           CASE number % 10 WHEN 0 THEN 'failed' ELSE 'sent' END, 1, 1, 0, now() FROM numbers
""")


def nodes(plan: Json) -> Iterator[Json]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.mark.parametrize("filters", [{}, {"status": ["failed"]}, {"channel": "email"}], ids=str)
async def test_list_of_a_tenant_reads_no_notifications_of_others(engine: AsyncEngine, filters: Json) -> None:
    async with engine.begin() as connection:
        await connection.execute(FILL, {"ours": OURS, "theirs": THEIRS})
        await connection.execute(text("ANALYZE notifications, deliveries"))
    statements: list[tuple[str, Any]] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def record(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    page = await NotificationQueries(TenantReads(engine, TenantShare(1))).page("ours", ListQuery(**filters))
    assert len(page.items) == 50
    [(statement, parameters)] = statements
    async with engine.connect() as connection:
        explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        [plan] = explained.scalar_one()
    assert "notifications_until_" in str(plan)
    scans = [node for node in nodes(plan["Plan"]) if node.get("Relation Name", "").startswith("notifications_")]
    assert sum(scan.get("Rows Removed by Filter", 0) for scan in scans) == 0, scans
