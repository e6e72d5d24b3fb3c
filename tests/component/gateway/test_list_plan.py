"""What PostgreSQL reads for the lists of a tenant's notifications and deliveries."""

from collections.abc import Sequence
from typing import Any

import pytest
from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.deliveries.queries import DeliveryQueries
from notify_gateway.deliveries.schemas import DeliveryQuery
from notify_gateway.notifications import queries
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.notifications.schemas import ListQuery
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import Json
from support.plans import executed_nodes, recorded, rows_read, scans

OLD = 2_000  # notifications of our tenant from before the default period
OURS = 2_000  # those of the last hour, which are older than those of the other tenant
THEIRS = 20_000
USERS = 20
OF_USER = (OLD + OURS) // USERS
FILL = text("""
    WITH numbers AS (
        SELECT number, CAST(lpad(to_hex(CAST(extract(epoch FROM now()) * 1000 AS bigint) - 3600000 + number
                                        - CASE WHEN number <= :old THEN 3 * 86400000 ELSE 0 END), 12, '0')
                            || '7000800000000000000' || number % 10 AS uuid) AS id
        FROM generate_series(1, CAST(:old AS integer) + :ours + :theirs) AS number
    ), n AS (
        INSERT INTO notifications (id, tenant, user_id, user_key, reference, metadata, message, created_at)
        SELECT id, CASE WHEN number <= CAST(:old AS integer) + :ours THEN 'ours' ELSE 'theirs' END,
               CASE number % 2 WHEN 0 THEN 1 + number % :users ELSE 0 END,
               CASE number % 2 WHEN 1 THEN 'user-' || number % :users END,
               'order-' || number % :users, json_build_object('shop', CAST(number % 10 AS text)), 'x', now()
        FROM numbers
    ), d AS (
        INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
        SELECT id, id, CASE number % 5 WHEN 0 THEN 'email' ELSE 'telegram' END,
               CASE number % 10 WHEN 0 THEN 'failed' ELSE 'sent' END, 1, 1, 0, now() FROM numbers
    )
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, started_at, finished_at)
    SELECT id, 1, 1, CASE number % 10 WHEN 0 THEN 'failed' ELSE 'sent' END,
           CASE number % 10 WHEN 0 THEN 'permanent' END, now(), now() FROM numbers
""")


async def fill(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(FILL, {"old": OLD, "ours": OURS, "theirs": THEIRS, "users": USERS})
        await connection.execute(text("ANALYZE notifications, deliveries, attempts"))


async def executed(engine: AsyncEngine, reader: Any, query: Any, *, wanted: int = 50) -> Sequence[Json]:
    """Read the page, which must have this many items, and return the executed nodes of the plan."""
    with recorded(engine) as statements:
        page = await reader(TenantReads(engine, TenantShare(1))).page("ours", query)
    assert len(page.items) == wanted
    return await executed_nodes(engine, statements[-1])


FILTERS = pytest.mark.parametrize("filters", [{}, {"status": ["failed"]}, {"channel": "email"}], ids=str)


@FILTERS
async def test_list_of_a_tenant_with_few_notifications_reads_nothing_of_others(
    engine: AsyncEngine, filters: Json
) -> None:
    await fill(engine)
    nodes = await executed(engine, NotificationQueries, ListQuery(**filters))
    for table in ("notifications", "deliveries"):
        assert 0 < rows_read(nodes, table) <= OURS, nodes


@FILTERS
async def test_list_of_a_tenant_with_many_notifications_reads_no_notifications_of_others(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, filters: Json
) -> None:
    monkeypatch.setattr(queries, "FEW", OURS)
    await fill(engine)
    nodes = await executed(engine, NotificationQueries, ListQuery(**filters))
    found = scans(nodes, "notifications")
    assert found
    assert sum(scan.get("Rows Removed by Filter", 0) for scan in found) == 0, found


async def test_rare_status_of_a_tenant_with_many_notifications_is_not_looked_up_one_by_one(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "FEW", OURS)
    await fill(engine)
    nodes = await executed(engine, NotificationQueries, ListQuery(status=["pending"]), wanted=0)
    assert max(scan["Actual Loops"] for scan in scans(nodes, "deliveries")) == 1


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, 50),
        ({"status": ["failed"]}, 50),
        ({"status": ["failed"], "error_class": "permanent"}, 50),
        ({"status": ["failed"], "error_class": "timeout"}, 0),
        ({"channel": "email", "expand": ["attempts", "content"]}, 50),
        ({"metadata.shop": "3"}, 50),
        ({"metadata.shop": "none"}, 0),
    ],
    ids=str,
)
async def test_list_of_deliveries_reads_only_its_period(engine: AsyncEngine, filters: Json, wanted: int) -> None:
    await fill(engine)
    nodes = await executed(engine, DeliveryQueries, DeliveryQuery(**filters), wanted=wanted)
    for table in ("notifications", "deliveries", "attempts"):
        assert rows_read(nodes, table) <= OURS, nodes


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"user_id": "11"}, 50),
        ({"user_id": "user-11"}, 50),
        ({"user_id": "user-11", "status": ["failed"]}, 0),
        ({"reference": "order-10", "status": ["failed"], "error_class": "permanent"}, 50),
        ({"reference": "order-10", "metadata.shop": "none"}, 0),
    ],
    ids=str,
)
async def test_list_of_deliveries_of_a_user_or_reference_reads_only_those(
    engine: AsyncEngine, filters: Json, wanted: int
) -> None:
    await fill(engine)
    nodes = await executed(engine, DeliveryQueries, DeliveryQuery(**filters), wanted=wanted)
    for table in ("notifications", "deliveries", "attempts"):
        assert rows_read(nodes, table) <= OF_USER, nodes
