"""After a rollback, the tables contain channels that only the newer version knows. The routes still return them."""

import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.console import overview
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import post
from support.outbox import add_row
from support.services import NOWHERE, running_gateway

FAIL = text("""
    UPDATE deliveries SET channel = 'pigeon', status = 'failed', round = 2, updated_at = clock_timestamp()
    WHERE channel = 'telegram'
""")
STORE_CHANNEL = text("INSERT INTO user_channels VALUES ('default', 1, 'pigeon', 'roof', false, now())")
RENAME_JOB = text("UPDATE retry_jobs SET channel = 'pigeon'")


async def test_deliveries_over_unknown_channels_can_be_read(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False) as api:
        created = await post(api, user_id=1, type=None, channels=["telegram", "email"])
        job = (await api.post("/api/deliveries/retry", json={"channel": "telegram"})).json()
        async with engine.begin() as connection:
            for statement in (FAIL, STORE_CHANNEL, RENAME_JOB):
                await connection.execute(statement)
        delivery = next(each["id"] for each in created["deliveries"] if each["channel"] == "telegram")
        found = {path: await api.get(path) for path in (
            f"/api/notifications/{created['id']}", "/api/notifications", "/api/notifications/1",
            f"/api/deliveries/{delivery}", f"/api/deliveries/retry/{job['id']}", "/api/users/1/channels",
        )}  # fmt: skip
        assert {path: (each.status_code, "pigeon" in each.text) for path, each in found.items()} == dict.fromkeys(
            found, (200, True)
        )
        assert found[f"/api/notifications/{created['id']}"].json()["channels"] == ["email", "pigeon"]


async def test_overview_lists_failures_of_unknown_channels(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "SETTLING", -5.0)  # the overview then includes the current second
    await add_row(engine, channel="pigeon")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET status = 'failed'"))
    async with running_gateway(NOWHERE, postgres, relaying=False) as api:
        shown = (await api.get("/api/overview")).json()
        assert [each["channel"] for each in shown["failures"]] == ["pigeon"]
        metrics = (await api.get("http://gateway:8085/metrics")).text
        assert "notify_outbox_unknown_channel_rows 1.0" in metrics
