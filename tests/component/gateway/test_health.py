"""Readiness while PostgreSQL or RabbitMQ is unavailable."""

import httpx
from notify_database.engine import PostgresSettings
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
