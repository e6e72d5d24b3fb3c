"""Pages of lists, whose size is bounded in bytes however long the history and the texts of their items are."""

import gc
import weakref
from collections.abc import Callable

import httpx
import pytest
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import SHORT_TEXT_LENGTH
from notify_common.runtime.clock import utc_now
from notify_gateway.deliveries.queries import LISTED_ATTEMPTS, delivery_statement
from notify_gateway.notifications.queries import notification_statement
from sqlalchemy import Executable, text
from sqlalchemy.ext.asyncio import AsyncEngine

NOTIFICATIONS = 100
LONGEST_MESSAGE = 16_384
LARGEST = 6_000_000  # bytes: 4 MB and one item
STORE = text("""
    WITH new AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:delivery_ids AS uuid[])) AS new (id, delivery_id)
    ), n AS (
        INSERT INTO notifications (id, user_id, message, created_at, tenant)
        SELECT id, 7, repeat('🙂', :length), now(), 'default' FROM new
    ), d AS (
        INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
        SELECT delivery_id, id, 'webhook', 'failed', :attempts + 1, CAST(:attempts AS integer), 0, now()
        FROM new
    )
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, error_text, started_at, finished_at)
    SELECT delivery_id, number, number, 'failed', 'permanent', repeat('🙂', :error_length), now(), now()
    FROM new, generate_series(1, CAST(:attempts AS integer)) AS number
""")


async def store(engine: AsyncEngine, *, message_length: int = 1, attempts: int = 0) -> tuple[list[str], list[str]]:
    """Store notifications with one delivery each; return the ids of both, those of the newest first."""
    now = utc_now()
    ids = sorted((new_id(now) for _ in range(NOTIFICATIONS)), reverse=True)
    delivery_ids = [new_id(now) for _ in ids]
    async with engine.begin() as connection:
        values = {
            "ids": ids,
            "delivery_ids": delivery_ids,
            "length": message_length,
            "attempts": attempts,
            "error_length": SHORT_TEXT_LENGTH,
        }
        await connection.execute(STORE, values)
    return [*map(str, ids)], [*map(str, delivery_ids)]


async def page_through(api: httpx.AsyncClient, path: str, expand: str) -> tuple[list[str], int]:
    """Read all pages; return the ids of their items, and the bytes of the largest page."""
    found, largest, query = list[str](), 0, {"expand": expand, "limit": "200"}
    while True:
        response = (await api.get(path, params=query)).raise_for_status()
        page = response.json()
        found += [item["id"] for item in page["items"]]
        largest = max(largest, len(response.content))
        if not page["has_more"]:
            return found, largest
        query["cursor"] = page["next_cursor"]


@pytest.mark.parametrize("path", ["/v1/notifications", "/v1/deliveries"])
async def test_page_with_very_many_attempts_ends_early(api: httpx.AsyncClient, engine: AsyncEngine, path: str) -> None:
    ids, delivery_ids = await store(engine, attempts=LISTED_ATTEMPTS)
    found, largest = await page_through(api, path, "attempts")
    assert found == (ids if path == "/v1/notifications" else delivery_ids)
    assert largest < LARGEST


async def test_page_of_deliveries_with_long_messages_ends_early(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    _, delivery_ids = await store(engine, message_length=LONGEST_MESSAGE)
    found, largest = await page_through(api, "/v1/deliveries", "content")
    assert found == delivery_ids
    assert largest < LARGEST


async def test_usual_page_is_full(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    ids, delivery_ids = await store(engine, message_length=100, attempts=3)
    for path, expected in (("/v1/notifications", ids), ("/v1/deliveries", delivery_ids)):
        page = (
            (await api.get(path, params={"expand": ["attempts", "content"], "limit": "99"})).raise_for_status().json()
        )
        assert [item["id"] for item in page["items"]] == expected[:99]
        assert (page["has_more"], page["next_cursor"]) == (True, expected[98])


@pytest.mark.parametrize("statement", [delivery_statement, notification_statement])
def test_combinations_of_filters_do_not_fill_the_memory(statement: Callable[[str], Executable]) -> None:
    """A client can combine the filters in tens of thousands of ways, each of which is a statement of its own."""
    first = weakref.ref(statement("SELECT 0"))
    for number in range(1, 1_000):
        statement(f"SELECT {number}")
    gc.collect()
    assert first() is None
