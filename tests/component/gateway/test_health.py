"""Readiness while PostgreSQL or RabbitMQ is unavailable."""

from contextlib import aclosing

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.application import Gateway
from notify_gateway.http_api import create_app
from notify_gateway.settings import GatewaySettings
from support.gateway import BODY
from support.services import NOWHERE, running_gateway


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
