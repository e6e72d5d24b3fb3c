"""Slow reads and writes, which delay neither the intake, nor health checks, nor other tenants."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway import database
from notify_gateway.http.principal import Scope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import waiting_for_locks
from support.event_stream import reading
from support.gateway import BODY, bearer, post
from support.services import NOWHERE, eventually, running_gateway, served_gateway

SOME_ID = "01a2107e-2b08-7f6c-80e3-ee68c821945a"


@asynccontextmanager
async def attempts_locked(engine: AsyncEngine) -> AsyncIterator[None]:
    """Block all statements that read attempts; accepting a notification is not one of them."""
    async with engine.begin() as lock:
        await lock.execute(text("LOCK TABLE attempts IN ACCESS EXCLUSIVE MODE"))
        yield


async def blocked(engine: AsyncEngine, count: int) -> None:
    """Wait until `count` statements wait for a lock."""

    async def enough() -> bool:
        return await waiting_for_locks(engine) >= count

    await eventually(enough, f"{count} statements are blocked")


async def test_slow_reads_delay_neither_intake_nor_readiness(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    notification = await post(api)
    async with attempts_locked(engine):
        reads = [asyncio.create_task(api.get(f"/api/notifications/{notification['id']}")) for _ in range(30)]
        await blocked(engine, 2)
        keyed = {"Idempotency-Key": "once"}
        for _ in range(3):
            assert (await api.post("/api/notifications", json=BODY, headers=keyed)).status_code == 201
            assert (await api.post("/api/notifications", json=BODY)).status_code == 201
        assert (await api.get("/readyz")).status_code == 200
    assert {response.status_code for response in await asyncio.gather(*reads)} <= {200, 429}


async def test_slow_reads_of_one_tenant_leave_connections_for_the_others(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "READ_WAIT", 0.1)
    scopes = (Scope.SEND, Scope.READ, Scope.ADMIN, Scope.RECIPIENTS_READ, Scope.RECIPIENTS_WRITE)
    ours, theirs = [await bearer(engine, *scopes, tenant=tenant) for tenant in ("ours", "theirs")]
    notification = (await secured_api.post("/api/notifications", json=BODY, headers=ours)).json()
    read = f"/api/notifications/{notification['id']}"
    async with attempts_locked(engine):
        reads = [asyncio.create_task(secured_api.get(read, headers=ours)) for _ in range(30)]
        await blocked(engine, 2)
        for _ in range(3):
            assert (await secured_api.get("/api/notifications", headers=theirs)).status_code == 200
        refused = await secured_api.get("/api/notifications", headers=ours)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert "this tenant" in refused.json()["detail"]
    assert {response.status_code for response in await asyncio.gather(*reads)} == {200, 429}
    assert (await secured_api.get("/api/notifications", headers=ours)).status_code == 200


async def test_waiting_reads_of_one_tenant_do_not_take_all_connections(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "READ_WAIT", 60.0)
    monkeypatch.setattr(database, "MAX_WAITING", 3)
    ours = await bearer(engine, Scope.READ, Scope.SEND, tenant="ours")
    notification = (await secured_api.post("/api/notifications", json=BODY, headers=ours)).json()
    read = f"/api/notifications/{notification['id']}"
    async with attempts_locked(engine):
        reads = [asyncio.create_task(secured_api.get(read, headers=ours)) for _ in range(30)]
        await blocked(engine, 2)

        async def refused() -> bool:
            return sum(each.done() for each in reads) == 30 - 2 - 3

        await eventually(refused, "two reads are in progress, three wait, and the others are refused")
    assert Counter(response.status_code for response in await asyncio.gather(*reads)) == {200: 5, 429: 25}
    assert (await secured_api.get(read, headers=ours)).status_code == 200


async def test_keys_can_be_revoked_while_the_tenant_has_slow_reads(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stolen key must not be able to delay its own revocation."""
    monkeypatch.setattr(database, "READ_WAIT", 0.1)
    admin, stolen = await bearer(engine, *Scope), await bearer(engine, Scope.READ, Scope.SEND)
    notification = (await secured_api.post("/api/notifications", json=BODY, headers=stolen)).json()
    async with attempts_locked(engine):
        path = f"/api/notifications/{notification['id']}"
        reads = [asyncio.create_task(secured_api.get(path, headers=stolen)) for _ in range(30)]
        await blocked(engine, 2)
        listed = await secured_api.get("/v1/keys", headers=admin)
        assert listed.status_code == 200
        revoked = await secured_api.delete(f"/v1/keys/{listed.json()['items'][0]['id']}", headers=admin)
        assert revoked.status_code == 204
        created = await secured_api.post("/v1/keys", json={"scopes": ["read"]}, headers=admin)
        assert created.status_code == 201
    await asyncio.gather(*reads)


@pytest.mark.parametrize(
    ("table", "method", "path"),
    [
        ("user_channels", "PUT", "/api/users/1/channels/email"),
        ("user_channels", "DELETE", "/api/users/1/channels/email"),
        ("deliveries", "POST", "/api/notifications/{id}/cancel"),
        ("deliveries", "POST", f"/api/deliveries/{SOME_ID}/retry"),
        ("retry_jobs", "POST", "/api/deliveries/retry"),
        ("api_keys", "POST", "/v1/keys"),
        ("api_keys", "DELETE", f"/v1/keys/{SOME_ID}"),
    ],
)
async def test_slow_writes_of_one_tenant_leave_connections_for_the_others(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, table: str, method: str, path: str
) -> None:
    ours, theirs = [await bearer(engine, *Scope, tenant=tenant) for tenant in ("ours", "theirs")]
    posted = (await secured_api.post("/api/notifications", json=BODY, headers=ours)).json()
    url, body = path.format(id=posted["id"]), {"scopes": ["read"]} if path == "/v1/keys" else {}

    async def write() -> httpx.Response:
        return await secured_api.request(method, url, json=None if method == "DELETE" else body, headers=ours)

    async with engine.begin() as lock:
        await lock.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))  # it blocks writes, but no reads
        writes = [asyncio.create_task(write()) for _ in range(30)]
        await blocked(engine, 1 if table == "api_keys" else 2)
        for _ in range(3):
            assert (await secured_api.get("/api/notifications", headers=theirs)).status_code == 200
    assert {response.status_code for response in await asyncio.gather(*writes)} <= {200, 201, 202, 204, 404}


async def test_read_that_takes_too_long_is_ended_and_asks_for_narrower_filters(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "READ_TIMEOUT", 0.2)
    async with running_gateway(NOWHERE, postgres, relaying=False) as api:
        notification = await post(api)
        async with attempts_locked(engine):
            response = await api.get(f"/api/notifications/{notification['id']}")
        assert response.status_code == 504
        assert response.headers["content-type"] == "application/problem+json"
        assert "narrow the filters" in response.json()["detail"]
        document = (await api.get("/openapi.json")).json()
        assert "504" in document["paths"]["/api/notifications"]["get"]["responses"]
        assert "504" not in document["paths"]["/api/notifications"]["post"]["responses"]


async def test_replay_that_takes_too_long_resets_the_stream(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "READ_TIMEOUT", 0.2)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        attempts_locked(engine),
        reading(url, last_event_id="0") as (reader, _),
    ):
        assert await reader.next() == {"event": "reset", "data": {}}
