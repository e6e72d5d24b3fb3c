"""Who gets in, and how much at a time."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import CACHE_SECONDS, ApiKeyStore
from notify_gateway.application import Gateway
from notify_gateway.http.authentication import Scope
from notify_gateway.http.middleware import MAX_BODY, MAX_HEAD, LimitsMiddleware
from notify_gateway.http.rate_limit import RequestRateLimiter
from notify_gateway.http_api import create_api, create_app
from notify_gateway.settings import GatewaySettings
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.processes import gateway_command
from support.services import NOWHERE, eventually, gateway_metrics, running_gateway, served_gateway

BODY = {"user_id": 1, "message": "x", "type": "email"}
OPEN = ("/livez", "/readyz", "/docs", "/openapi.json", "/asyncapi")
BODIES = ("POST", "PUT")
SOME_ID = "01a2107e-2b08-7f6c-80e3-ee68c821945a"
ROUTES = [
    ("POST", "/api/notifications", Scope.SEND),
    ("GET", "/api/notifications", Scope.READ),
    ("GET", f"/api/notifications/{SOME_ID}", Scope.READ),
    ("GET", "/api/notifications/1", Scope.READ),
    ("POST", f"/api/notifications/{SOME_ID}/cancel", Scope.ADMIN),
    ("GET", f"/api/deliveries/{SOME_ID}", Scope.READ),
    ("POST", f"/api/deliveries/{SOME_ID}/retry", Scope.ADMIN),
    ("POST", "/api/deliveries/retry", Scope.ADMIN),
    ("GET", f"/api/deliveries/retry/{SOME_ID}", Scope.ADMIN),
    ("GET", "/api/events?channel=fax", Scope.READ),
    ("GET", "/api/overview", Scope.OPERATOR),
    ("GET", "/api/links", Scope.READ),
    ("GET", "/api/users/1/channels", Scope.READ),
    ("GET", "/api/users/1/channels/email", Scope.READ),
    ("PUT", "/api/users/1/channels/email", Scope.SEND),
    ("DELETE", "/api/users/1/channels/email", Scope.SEND),
]


@pytest.fixture
async def api(postgres: PostgresSettings) -> AsyncIterator[httpx.AsyncClient]:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as client:
        yield client


async def bearer(engine: AsyncEngine, *scopes: Scope, tenant: str = "default") -> dict[str, str]:
    _, token = await ApiKeyStore(engine).create(tenant, "of a test", frozenset(scopes))
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("method", "path"), [route[:2] for route in ROUTES])
async def test_without_a_key_or_with_an_unknown_one_nobody_gets_in(
    api: httpx.AsyncClient, method: str, path: str
) -> None:
    for headers in ({}, {"Authorization": "Bearer ntf_unknown"}, {"Authorization": "Basic bm90OmE="}):
        answer = await api.request(method, path, headers=headers, json=BODY if method in BODIES else None)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert answer.json()["status"] == 401


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_each_route_takes_its_scope_and_no_other(
    api: httpx.AsyncClient, engine: AsyncEngine, method: str, path: str, scope: Scope
) -> None:
    body = BODY if path == "/api/notifications" else {}
    for given in Scope:
        answer = await api.request(
            method, path, headers=await bearer(engine, given), json=body if method in BODIES else None
        )
        assert (answer.status_code == 403) == (given is not scope), answer.text


@pytest.mark.parametrize("path", OPEN)
async def test_some_routes_are_open(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(path)).status_code == 200


def test_every_route_that_is_not_open_is_tried_here(postgres: PostgresSettings) -> None:
    settings = {**postgres.model_dump(), "auth": "on"}
    documented = create_api(Gateway(GatewaySettings.model_validate(settings))).openapi()["paths"]
    for path, operations in documented.items():
        for method in operations:
            pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
            tried = any(
                method.upper() == route[0] and re.fullmatch(pattern, route[1].partition("?")[0]) for route in ROUTES
            )
            assert tried != (path in OPEN), f"{method} {path}"


async def test_the_console_is_open_and_runs_nothing_from_elsewhere(api: httpx.AsyncClient) -> None:
    answer = await api.get("/")
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    for path in re.findall(r'(?:src|href)="(console/[^"]+)"', answer.text):
        assert (await api.get(f"/{path}")).status_code == 200


async def test_the_key_is_asked_for_before_the_body_is_read(api: httpx.AsyncClient) -> None:
    for content in (b"{bad", b" " * (MAX_BODY + 1)):
        assert (await api.post("/api/notifications", content=content)).status_code == 401


@pytest.mark.parametrize(
    "content",
    [
        b'{"user_id": 1, "user_id": 2, "message": "x", "type": "email"}',
        b'{"metadata": {"a": "1", "a": "2"}, "user_id": 1, "message": "x", "type": "email"}',
        b"[" * 100_000,
        b'{"user_id": ' + b"9" * 5000 + b"}",
        b'{"user_id": 1, "message": "caf\xe9", "type": "email"}',
        b'{"user_id": 1',
    ],
)
async def test_json_that_is_not_clear_is_refused_and_said_why(
    api: httpx.AsyncClient, engine: AsyncEngine, content: bytes
) -> None:
    headers = {**await bearer(engine, Scope.SEND), "Content-Type": "application/json"}
    answer = await api.post("/api/notifications", content=content, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("body: not valid JSON: ")


async def test_a_tenant_sees_only_its_own(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    ours = await bearer(engine, *Scope, tenant="ours")
    theirs = await bearer(engine, *Scope, tenant="theirs")
    key = {"Idempotency-Key": "the same"}
    created = (await api.post("/api/notifications", json=BODY, headers={**ours, **key})).json()
    other = (await api.post("/api/notifications", json=BODY, headers={**theirs, **key})).json()
    assert other["id"] != created["id"]
    for method, path in (
        ("GET", f"/api/notifications/{created['id']}"),
        ("POST", f"/api/notifications/{created['id']}/cancel"),
        ("POST", f"/api/deliveries/{created['deliveries'][0]['id']}/retry"),
    ):
        assert (await api.request(method, path, headers=theirs)).status_code == 404
    for path in ("/api/notifications", "/api/notifications?user_id=1"):
        listed = (await api.get(path, headers=ours)).json()["items"]
        assert [each["id"] for each in listed] == [created["id"]]
    assert [each["id"] for each in (await api.get("/api/notifications/1", headers=ours)).json()] == [created["id"]]


async def test_a_revoked_key_is_of_no_use_and_the_database_does_not_have_the_key(engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    key_id, token = await keys.create("default", "to be revoked", frozenset({Scope.READ}))
    assert await keys.principal(token) is not None
    assert await keys.revoke(key_id)
    assert not await keys.revoke(key_id)
    assert await ApiKeyStore(engine).principal(token) is None
    async with engine.connect() as connection:
        stored = (await connection.execute(text("SELECT api_keys::text FROM api_keys"))).scalar_one()
    assert token not in stored
    assert CACHE_SECONDS <= 5  # what the documentation promises


async def test_another_bootstrap_key_takes_the_place_of_the_first(engine: AsyncEngine) -> None:
    await ApiKeyStore(engine).ensure_bootstrap_key("the first key, which leaked")
    await ApiKeyStore(engine).ensure_bootstrap_key("the second key, which did not")
    assert await ApiKeyStore(engine).principal("the first key, which leaked") is None
    assert await ApiKeyStore(engine).principal("the second key, which did not") is not None


async def test_the_bootstrap_key_opens_and_stays_revoked(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    token = "a key that was chosen by hand"
    headers = {"Authorization": f"Bearer {token}"}
    for _ in range(2):
        async with running_gateway(NOWHERE, postgres, auth="on", bootstrap_api_key=token) as api:

            async def opens(client: httpx.AsyncClient = api) -> bool:
                return (await client.get("/api/notifications", headers=headers)).status_code == 200

            await eventually(opens, "the bootstrap key opens")
    keys = ApiKeyStore(engine)
    [key] = await keys.list()
    await keys.revoke(key.id)
    await keys.ensure_bootstrap_key(token)
    assert await ApiKeyStore(engine).principal(token) is None


def test_no_authentication_where_others_can_reach_the_api_is_refused() -> None:
    with pytest.raises(ValidationError, match="AUTH"):
        GatewaySettings.model_validate({"auth": "off", "app_host": "0.0.0.0"})  # noqa: S104 - refused
    for fine in ({"app_host": "127.0.0.1"}, {"app_host": "0.0.0.0", "allow_insecure": "1"}):  # noqa: S104 - wanted
        GatewaySettings.model_validate({"auth": "off", **fine})


def test_secrets_of_the_example_file_are_named() -> None:
    settings = {"postgres_password": "change-me-postgres", "bootstrap_api_key": "change-me-0123456789abcdef"}
    assert GatewaySettings.model_validate(settings).example_secrets() == ["POSTGRES_PASSWORD", "BOOTSTRAP_API_KEY"]


def test_the_rate_limit_fills_with_time() -> None:
    limit = RequestRateLimiter(10)
    taken = ["Retry-After" not in limit.count("key", 0.0) for _ in range(25)]
    assert taken == [True] * 20 + [False] * 5
    assert "Retry-After" not in limit.count("another", 0.0)
    assert "Retry-After" not in limit.count("key", 0.1)
    assert "Retry-After" in limit.count("key", 0.1)
    assert RequestRateLimiter(0).count("key", 0.0) == {}


async def test_a_key_past_its_rate_is_told_when_to_come_back(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    headers = await bearer(engine, Scope.READ)
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on", rate_limit=1) as api:
        answers = [await api.get("/api/notifications", headers=headers) for _ in range(4)]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "1"
    assert answers[0].headers["RateLimit-Policy"] == '"key";q=2;w=2'
    assert answers[0].headers["RateLimit"].startswith('"key";r=1;')


async def test_a_body_that_is_too_long_is_413_however_it_comes(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    headers = await bearer(engine, Scope.SEND)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 65536 + 1):
            yield b" " * 65536

    for content in (b" " * (MAX_BODY + 1), chunks()):
        answer = await api.post("/api/notifications", content=content, headers=headers)
        assert answer.status_code == 413


async def test_headers_that_are_too_long_are_431_and_every_answer_is_secured(api: httpx.AsyncClient) -> None:
    answer = await api.get("/livez", headers={"X-Long": "x" * MAX_HEAD})
    assert answer.status_code == 431
    for each in (answer, await api.get("/livez"), await api.get("/api/notifications")):
        assert each.headers["X-Content-Type-Options"] == "nosniff"
        assert each.headers["Cache-Control"] == "no-store"
        assert "access-control-allow-origin" not in each.headers


async def test_a_head_without_end_is_cut_off(postgres: PostgresSettings) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * MAX_HEAD)
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_requests_on_one_connection_have_their_limits_each(postgres: PostgresSettings) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for _ in range(20):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 2000 + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"}")
        writer.close()


@asynccontextmanager
async def hurried(postgres: PostgresSettings, **limits: float) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway whose requests have little time."""
    app = create_app(Gateway(GatewaySettings.model_validate({**postgres.model_dump(), "auth": "off"})))
    transport = httpx.ASGITransport(LimitsMiddleware(app, gateway_metrics().observe_request, **limits))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def test_a_body_that_does_not_come_is_408(postgres: PostgresSettings) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with hurried(postgres, body_timeout=0.05) as api:
        answer = await api.post("/api/notifications", content=never())
    assert (answer.status_code, answer.json()["title"]) == (408, "Request Timeout")


async def test_a_request_that_takes_too_long_is_told_so(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    async with hurried(postgres, request_timeout=0.5) as api, engine.begin() as lock:
        await lock.execute(text("LOCK TABLE notifications IN ACCESS EXCLUSIVE MODE"))
        answer = await api.get("/api/notifications")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_operator_makes_lists_and_revokes_keys(
    api: httpx.AsyncClient, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    made = await gateway_command("keys", "create", "--tenant", "shop", "--scope", "read", servers=[postgres])
    key_id, token = made.split()
    headers = {"Authorization": f"Bearer {token}"}
    assert (await api.get("/api/notifications", headers=headers)).status_code == 200
    assert (await api.post("/api/notifications", headers=headers, json=BODY)).status_code == 403
    [listed] = (await gateway_command("keys", "list", servers=[postgres])).splitlines()
    assert {key_id, "shop", "read", "valid"} <= set(listed.split())
    assert token not in listed
    assert await gateway_command("keys", "revoke", key_id, servers=[postgres]) == ""
    assert await ApiKeyStore(engine).principal(token) is None
    assert "revoked" in await gateway_command("keys", "list", servers=[postgres])
    await gateway_command("keys", "revoke", key_id, servers=[postgres], code=1)


async def test_unknown_keys_do_not_take_the_connections_of_known_ones(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on", postgres_pool_size=5) as api:
        headers = await bearer(engine, Scope.SEND)
        assert (await api.post("/api/notifications", headers=headers, json=BODY)).status_code == 201
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"))
            strangers = [
                asyncio.create_task(api.get("/api/notifications", headers={"Authorization": f"Bearer {number}"}))
                for number in range(10)
            ]
            await asyncio.sleep(0)
            assert (await api.post("/api/notifications", headers=headers, json=BODY)).status_code == 201
        assert {answer.status_code for answer in await asyncio.gather(*strangers)} == {401}


async def test_a_session_that_stops_in_a_transaction_or_waits_too_long_is_ended(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        for setting, value in (("idle_in_transaction_session_timeout", "10s"), ("statement_timeout", "30s")):
            assert (await connection.execute(text(f"SHOW {setting}"))).scalar_one() == value
