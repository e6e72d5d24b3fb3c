"""Limits on the size and the duration of a request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.application import Gateway
from notify_gateway.http import arriving_body
from notify_gateway.http.middleware import BODY_TIMEOUT, MAX_BODY, MAX_HEAD, REQUEST_TIMEOUT, LimitsMiddleware
from notify_gateway.http.origin import OriginCheck
from notify_gateway.http.principal import Scope
from notify_gateway.http_api import create_app
from notify_gateway.settings import GatewaySettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import bearer, rows
from support.services import NOWHERE, TIMEOUT, eventually, gateway_metrics, served_gateway

CHANNEL = "/api/users/1/channels/email"
LARGE = b" " * 2_000


async def test_oversized_body_returns_413_with_or_without_content_length(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = await bearer(engine, Scope.SEND)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 65536 + 1):
            yield b" " * 65536

    for content in (b" " * (MAX_BODY + 1), chunks()):
        response = await secured_api.post("/api/notifications", content=content, headers=headers)
        assert response.status_code == 413


async def test_oversized_headers_return_431_and_every_response_has_security_headers(
    secured_api: httpx.AsyncClient,
) -> None:
    response = await secured_api.get("/livez", headers={"X-Long": "x" * MAX_HEAD})
    assert response.status_code == 431
    for each in (response, await secured_api.get("/livez"), await secured_api.get("/api/notifications")):
        assert each.headers["X-Content-Type-Options"] == "nosniff"
        assert each.headers["Cache-Control"] == "no-store"
        assert "access-control-allow-origin" not in each.headers


async def test_oversized_headers_are_rejected_before_they_are_complete(postgres: PostgresSettings) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * MAX_HEAD)
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_header_limit_applies_to_each_request_separately(postgres: PostgresSettings) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for _ in range(20):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 2000 + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"}")
        writer.close()


@asynccontextmanager
async def gateway_with_limits(
    postgres: PostgresSettings, *, body_timeout: float = BODY_TIMEOUT, request_timeout: float = REQUEST_TIMEOUT
) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway with custom limits; yield a client."""
    app = create_app(Gateway(GatewaySettings.model_validate({**postgres.model_dump(), "auth": "off"})))
    limited = LimitsMiddleware(
        app,
        gateway_metrics().observe_request,
        OriginCheck(),
        body_timeout=body_timeout,
        request_timeout=request_timeout,
    )
    transport = httpx.ASGITransport(limited)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_bodies_that_have_arrived_are_bounded_together(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 3_900)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url, httpx.AsyncClient(base_url=url) as api:
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE user_channels IN ACCESS EXCLUSIVE MODE"))
            content, headers = b'{"opted_out": true}' + LARGE, {"Content-Type": "application/json"}
            waiting = asyncio.create_task(api.put(CHANNEL, content=content, headers=headers))
            await eventually(partial(_is_blocked, engine), "the first request waits for the lock")
            for sending in (api.post("/api/notifications", content=LARGE), api.put(CHANNEL, content=LARGE)):
                response = await sending
                assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
                assert "large requests" in response.json()["detail"]
            for _ in range(5):
                assert (await api.post("/api/notifications", content=b" " * 500)).status_code == 422
        await waiting
        for _ in range(5):
            assert (await api.put(CHANNEL, content=LARGE)).status_code == 422


async def test_bodies_that_wait_with_their_requests_leave_room_for_other_tenants(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 9_000)
    many, few = [await bearer(engine, *Scope, tenant=tenant) for tenant in ("many", "few")]
    headers = {**many, "Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=20)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url,
        httpx.AsyncClient(base_url=url, limits=limits) as api,
    ):
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE user_channels IN ACCESS EXCLUSIVE MODE"))
            content = b'{"opted_out": true}' + LARGE
            waiting = [asyncio.create_task(api.put(CHANNEL, content=content, headers=headers)) for _ in range(8)]
            async with asyncio.timeout(TIMEOUT):
                refused, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert {(await each).status_code for each in refused} == {503}
            assert (await api.post("/api/notifications", content=LARGE, headers=few)).status_code == 422
        assert {(await each).status_code for each in waiting} == {200, 503}
        for _ in range(5):
            assert (await api.put(CHANNEL, content=content, headers=headers)).status_code == 200


async def _is_blocked(engine: AsyncEngine) -> bool:
    return bool(await rows(engine, "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'user_channels'::regclass"))


@pytest.mark.parametrize("path", ["/api/notifications", CHANNEL])
async def test_bodies_that_do_not_end_yield_to_newer_ones(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 5_000)
    method = "POST" if path == "/api/notifications" else "PUT"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE) + 1}\r\n\r\n".encode()
    async with served_gateway(NOWHERE, postgres, relaying=False) as url, httpx.AsyncClient(base_url=url) as api:
        stalled = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(head + LARGE)
            stalled.append((reader, writer))
            assert (await api.post("/api/notifications", content=b"{}")).status_code == 422
        assert (await api.post("/api/notifications", content=LARGE)).status_code == 422
        async with asyncio.timeout(TIMEOUT):
            for reader, _ in stalled[:3]:  # the oldest ones
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 503")
        stalled[3][1].write(b" ")
        assert (await stalled[3][0].readuntil(b"\r\n")).startswith(b"HTTP/1.1 422")
        for _, writer in stalled:
            writer.close()


@pytest.mark.parametrize("path", ["/api/notifications", CHANNEL])
async def test_body_does_not_yield_to_the_many_bodies_of_another_tenant(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 9_000)
    method = "POST" if path == "/api/notifications" else "PUT"
    many, few = [(await bearer(engine, *Scope, tenant=tenant))["Authorization"] for tenant in ("many", "few")]
    async with served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url:

        async def begin(authorization: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            """Send a request except for its last byte; return once the gateway has authenticated it."""
            reader, writer = await asyncio.open_connection(url.host, url.port)
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE) + 1}\r\n"
            expect = f"Expect: 100-continue\r\nAuthorization: {authorization}\r\n\r\n"
            writer.write((head + expect).encode())
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(LARGE)
            return reader, writer

        slow, *others = [await begin(few), *[await begin(many) for _ in range(8)]]
        async with asyncio.timeout(TIMEOUT):
            for reader, _ in others[:5]:  # the oldest ones
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 503")
            for reader, writer in (slow, *others[5:]):
                writer.write(b" ")
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 422")
        for _, writer in (slow, *others):
            writer.close()


async def test_stalled_bodies_of_one_tenant_do_not_take_all_connections(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_ARRIVING", 3)
    many, few = [(await bearer(engine, Scope.SEND, tenant=tenant))["Authorization"] for tenant in ("many", "few")]
    body = b'{"user_id": "1", "channels": ["email"], "message": "x"}'
    async with served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url:

        async def begin(authorization: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
            """Send a request without its body; return once the gateway waits for that, or has responded."""
            reader, writer = await asyncio.open_connection(url.host, url.port)
            head = "POST /v1/notifications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            more = f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\nAuthorization: {authorization}\r\n\r\n"
            writer.write((head + more).encode())
            return reader, writer, (await reader.readuntil(b"\r\n\r\n"))[9:12]

        async with asyncio.timeout(TIMEOUT):
            stalled = [await begin(many) for _ in range(5)]
            assert [status for _, _, status in stalled] == [b"100"] * 3 + [b"429"] * 2
            others = [await begin(few) for _ in range(2)]
            for reader, writer, _ in (*stalled[:3], *others):
                writer.write(body)
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 201")
            stalled += [await begin(many) for _ in range(3)]  # there is room again
            assert [status for _, _, status in stalled[5:]] == [b"100"] * 3
        for _, writer, _ in (*stalled, *others):
            writer.close()


async def test_requests_that_wait_behind_a_stream_yield_their_memory(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 3_000)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url, httpx.AsyncClient(base_url=url) as api:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writer.write(f"PUT {CHANNEL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n".encode() + LARGE)
        await reader.readuntil(b"retry")
        assert (await api.put(CHANNEL, content=LARGE)).status_code == 422
        writer.close()


async def test_memory_of_bodies_is_freed_if_a_connection_is_lost_before_its_requests_are_handled(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 3_000)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url, httpx.AsyncClient(base_url=url) as api:
        for path in ("/api/notifications", CHANNEL):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            # The second request waits for the end of the first one, which never ends.
            writer.write(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE) + 1}\r\n\r\n"
            writer.write(head.encode() + LARGE)
            await reader.readuntil(b"retry")
            writer.close()
            await writer.wait_closed()

        async def freed() -> bool:
            return (await api.put(CHANNEL, content=LARGE)).status_code == 422

        await eventually(freed, "the memory is free again")


async def test_body_that_an_event_stream_discards_takes_no_memory(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 3_000)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url, httpx.AsyncClient(base_url=url) as api:
        streaming = api.build_request("GET", "/api/events", content=LARGE)
        response = await api.send(streaming, stream=True)

        async def freed() -> bool:
            return (await api.put(CHANNEL, content=LARGE)).status_code == 422

        await eventually(freed, "the memory is free again")
        assert not response.is_closed
        await response.aclose()


async def test_stalled_body_returns_408(postgres: PostgresSettings) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with gateway_with_limits(postgres, body_timeout=0.05) as api:
        response = await api.post("/api/notifications", content=never())
    assert (response.status_code, response.json()["title"]) == (408, "Request Timeout")


async def test_slow_request_returns_503(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    async with gateway_with_limits(postgres, request_timeout=0.5) as api, engine.begin() as lock:
        await lock.execute(text("LOCK TABLE notifications IN ACCESS EXCLUSIVE MODE"))
        response = await api.get("/api/notifications")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
