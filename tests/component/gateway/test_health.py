"""Readiness while PostgreSQL or RabbitMQ is unavailable."""

import asyncio
from contextlib import aclosing

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.application import Gateway
from notify_gateway.http.principal import Scope
from notify_gateway.http_api import create_app, create_health
from notify_gateway.settings import GatewaySettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import waiting_for_locks
from support.gateway import BODY, bearer
from support.services import NOWHERE, eventually, running_gateway, working_gateway


async def test_requests_without_postgresql_return_503_with_retry_after(postgres: PostgresSettings) -> None:
    nowhere = postgres.model_copy(update={"postgres_port": 1})
    async with running_gateway(NOWHERE, nowhere, relaying=False) as api:
        for response in (await api.post("/api/notifications", json=BODY), await api.get("/api/notifications")):
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        ready = await api.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["postgresql"].startswith("not reachable")
        assert (await api.get("/livez")).status_code == 200


async def test_gateway_is_ready_without_rabbitmq_but_reports_the_outage(api: httpx.AsyncClient) -> None:
    response = await api.get("/readyz")
    assert response.status_code == 200
    assert response.json()["postgresql"] == "ready"
    assert "outbox" in response.json()["rabbitmq"]


async def test_readiness_does_not_quote_why_the_login_is_refused(
    postgres: PostgresSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Everybody can read it. The log has the details."""
    refused = {**postgres.model_dump(), "postgres_database": "nosuchdatabase", "auth": "off"}
    async with aclosing(Gateway(GatewaySettings.model_validate(refused))) as gateway:
        transport = httpx.ASGITransport(app=create_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as api:
            ready = await api.get("/readyz")
    assert (ready.status_code, ready.json()["postgresql"]) == (503, "cannot be used; the log says why")
    [record] = [each for each in caplog.records if each.name == "notify_gateway.health"]
    assert "nosuchdatabase" in str(vars(record))


async def test_many_scrapes_do_not_delay_the_look_ups_of_keys(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    """Whoever reaches the health port needs no key to scrape the metrics."""
    async with (
        working_gateway(NOWHERE, postgres, relaying=False, auth="on") as gateway,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=create_health(gateway)), base_url="http://localhost"
        ) as monitoring,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(gateway)), base_url="http://localhost") as api,
    ):
        key = await bearer(engine, Scope.READ)
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE"))
            scrapes = [asyncio.create_task(monitoring.get("/metrics")) for _ in range(20)]

            async def blocked() -> bool:
                return await waiting_for_locks(engine) > 0

            await eventually(blocked, "a scrape waits for the lock")
            assert (await api.get("/api/links", headers=key)).status_code == 200
            assert not any(scrape.done() for scrape in scrapes)
        assert {response.status_code for response in await asyncio.gather(*scrapes)} == {200}
