"""What PostgreSQL keeps in memory for reads: filters can be combined in tens of thousands of ways."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from notify_common.contracts.ids import new_id
from notify_database.engine import PostgresSettings, create_engine
from notify_gateway.database import READS, Engines, TenantReads, TenantShare
from notify_gateway.deliveries.queries import DeliveryQueries
from notify_gateway.deliveries.schemas import DeliveryQuery
from notify_gateway.http.fields import Expansion
from notify_gateway.legacy.schemas import ListQuery as LegacyListQuery
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.notifications.schemas import ListQuery
from notify_gateway.notifications.status import NotificationStatus
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.plans import Statement, planned_nodes, recorded, scans

EXECUTIONS = 6  # after five, PostgreSQL may make a plan that it keeps as long as the statement
MOST_BYTES = 1024 * 1024
PLANS = text("""
    SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '%WINDOW newest_first%'
""")
KEPT_PLANS = text("SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE name = 'CachedPlan'")


@pytest.fixture
async def reads(postgres: PostgresSettings) -> AsyncIterator[AsyncEngine]:
    engines = Engines(postgres, total=10)
    yield engines.reads
    await engines.dispose()


async def planned_weeks(reads: AsyncEngine, statements: Sequence[Statement]) -> dict[str, int]:
    """Return how many weeks of each table are in the plan of the only statement."""
    [statement] = statements
    nodes = await planned_nodes(reads, statement)
    tables = ("notifications", "deliveries", "attempts")
    return {table: len({scan["Relation Name"] for scan in scans(nodes, table)}) for table in tables}


async def test_combined_filters_leave_no_plans_in_the_memory_of_postgresql(reads: AsyncEngine) -> None:
    queries = NotificationQueries(TenantReads(reads, TenantShare(1)))
    for statuses in combinations(NotificationStatus, 3):
        for _ in range(EXECUTIONS):
            await queries.page("ours", ListQuery(user_id="a", status=list(statuses), channel="email"))
    async with reads.connect() as connection:
        assert (await connection.execute(KEPT_PLANS)).scalar_one() < MOST_BYTES


async def test_plain_list_of_a_user_keeps_its_plan(postgres: PostgresSettings) -> None:
    """It reads all weeks, so planning would take longer than reading."""
    reads = create_engine(postgres, pool_size=1, planner=READS)
    of_user: Sequence[tuple[Any, Any]] = (
        (NotificationQueries(TenantReads(reads, TenantShare(1))), ListQuery),
        (DeliveryQueries(TenantReads(reads, TenantShare(1))), DeliveryQuery),
    )
    for queries, query in of_user:
        for user in ("a", "b", "1", "2"):
            await queries.page("ours", query(user_id=user))
            await queries.page("ours", query(user_id=user, created_before=datetime.now(UTC)))
    async with reads.connect() as connection:
        kinds = {(row.generic_plans > 0, row.custom_plans > 0) for row in await connection.execute(PLANS)}
    await reads.dispose()
    assert kinds == {(True, False), (False, True)}


@pytest.mark.parametrize(
    ("query", "is_plain"),
    [
        (LegacyListQuery(user_id=1).current(), True),
        (LegacyListQuery(user_id=1, status=NotificationStatus.SENT).current(), False),
        (ListQuery(reference="a", limit=1), True),
        (ListQuery.model_validate({"reference": "a", "metadata.shop": "1"}), False),
        (ListQuery(user_id="a", expand=[Expansion.ATTEMPTS]), False),
        (ListQuery(), False),
    ],
    ids=str,
)
def test_query_is_plain_if_it_has_no_other_filter(query: ListQuery, *, is_plain: bool) -> None:
    assert query.is_plain is is_plain


@pytest.mark.parametrize("queries", [NotificationQueries, DeliveryQueries])
async def test_read_by_id_plans_for_one_week(
    reads: AsyncEngine, queries: type[NotificationQueries] | type[DeliveryQueries]
) -> None:
    with recorded(reads) as statements:
        await queries(TenantReads(reads, TenantShare(1))).get("ours", new_id(datetime.now(UTC)))
    assert await planned_weeks(reads, statements) == {"notifications": 1, "deliveries": 1, "attempts": 1}


async def test_lists_of_a_period_plan_for_its_weeks(reads: AsyncEngine) -> None:
    begin = datetime.now(UTC) + timedelta(weeks=3)
    period: dict[str, Any] = {"created_after": begin, "created_before": begin + timedelta(seconds=1)}
    with recorded(reads) as of_notifications:
        await NotificationQueries(TenantReads(reads, TenantShare(1))).page("ours", ListQuery(**period))
    with recorded(reads) as of_deliveries:
        await DeliveryQueries(TenantReads(reads, TenantShare(1))).page("ours", DeliveryQuery(**period))
    assert await planned_weeks(reads, of_notifications) == {"notifications": 1, "deliveries": 1, "attempts": 0}
    assert await planned_weeks(reads, of_deliveries) == {"notifications": 1, "deliveries": 1, "attempts": 1}
