"""Values that the status writer's login may store, although no service does. The routes stay within their memory."""

from datetime import timedelta
from uuid import UUID

import httpx
import pytest
from notify_common.contracts.messages import SHORT_TEXT_LENGTH
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_gateway.console import overview
from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.schemas import StatusEvent
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import Json, post
from support.services import NOWHERE, running_gateway

LARGE = 1_000_000
ADD_LARGE_ATTEMPTS = text("""
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, error_code, error_text,
                          provider_message_id, started_at, finished_at, next_attempt_at)
    SELECT :id, number, 1, 'retrying', 'temporary', repeat('c', :size), repeat('t', :size), repeat('i', :size),
           '4000-01-01 BC', 'infinity', '294000-01-01'
    FROM generate_series(1, 3) AS number
""")
CHANGE = text("""
    UPDATE deliveries SET status = 'failed', attempt = 3, reason = repeat('r', :size),
                          updated_at = CAST(:updated_at AS text)::timestamptz
""")
SHORT = SHORT_TEXT_LENGTH


async def change(engine: AsyncEngine, created: Json, updated_at: str) -> str:
    delivery_id: str = created["deliveries"][0]["id"]
    async with engine.begin() as connection:
        await connection.execute(ADD_LARGE_ATTEMPTS, {"id": UUID(delivery_id), "size": LARGE})
        await connection.execute(CHANGE, {"size": LARGE, "updated_at": updated_at})
    return delivery_id


@pytest.mark.parametrize("updated_at", ["now", "4000-01-01 BC", "294000-01-01", "-infinity"])
async def test_large_texts_unknown_reasons_and_distant_times_are_read_within_limits(
    api: httpx.AsyncClient, engine: AsyncEngine, updated_at: str
) -> None:
    created = await post(api)
    delivery_id = await change(engine, created, updated_at)
    for path in (
        f"/api/notifications/{created['id']}",
        "/api/notifications",
        "/api/notifications/1",
        f"/api/deliveries/{delivery_id}",
    ):
        response = await api.get(path)
        assert (path, response.status_code) == (path, 200)
        assert len(response.content) < 20_000
        assert "rrr" not in response.text
    read = (await api.get(f"/api/notifications/{created['id']}")).json()
    for attempt in read["deliveries"][0]["attempts"]:
        texts = [attempt[name] for name in ("error_code", "error_text", "provider_message_id")]
        assert texts == ["c" * SHORT, "t" * SHORT, "i" * SHORT]
        assert attempt["next_attempt_at"] is not None
    cancelled = await api.post(f"/api/notifications/{created['id']}/cancel")
    assert cancelled.status_code in {200, 409}


async def test_replayed_events_have_short_texts_and_no_later_time_than_now(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    delivery_id = await change(engine, await post(api), "294000-01-01")
    history = EventHistory(engine, TenantReads(engine, TenantShare(1)))
    events: list[StatusEvent] = []

    def render(event: StatusEvent) -> bytes:
        events.append(event)
        return b""

    await history.since(utc_now() - timedelta(hours=1), EventFilter("default"), render)
    [event] = events
    assert (str(event.delivery_id), event.error_code) == (delivery_id, "c" * SHORT)
    assert event.changed_at < utc_now() + timedelta(minutes=1)


async def test_overview_lists_failures_with_short_texts(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "SETTLING", -5.0)  # the overview then includes the current second
    async with running_gateway(NOWHERE, postgres, relaying=False) as api:
        await change(engine, await post(api), "294000-01-01")
        [failure] = (await api.get("/api/overview")).json()["failures"]
        assert failure["error_code"] == "c" * SHORT
