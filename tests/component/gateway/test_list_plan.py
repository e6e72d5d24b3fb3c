"""What PostgreSQL reads for a list of a tenant's notifications."""

import pytest
from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.notifications.schemas import ListQuery
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import Json
from support.plans import executed_nodes, recorded, scans

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


@pytest.mark.parametrize("filters", [{}, {"status": ["failed"]}, {"channel": "email"}], ids=str)
async def test_list_of_a_tenant_reads_no_notifications_of_others(engine: AsyncEngine, filters: Json) -> None:
    async with engine.begin() as connection:
        await connection.execute(FILL, {"ours": OURS, "theirs": THEIRS})
        await connection.execute(text("ANALYZE notifications, deliveries"))
    with recorded(engine) as statements:
        page = await NotificationQueries(TenantReads(engine, TenantShare(1))).page("ours", ListQuery(**filters))
    assert len(page.items) == 50
    [statement] = statements
    found = scans(await executed_nodes(engine, statement), "notifications")
    assert found
    assert sum(scan.get("Rows Removed by Filter", 0) for scan in found) == 0, found
