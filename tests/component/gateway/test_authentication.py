"""Authentication: the scopes that each route accepts, and the isolation of tenants."""

import re

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.application import Gateway
from notify_gateway.http.middleware import MAX_BODY
from notify_gateway.http.principal import Scope
from notify_gateway.http_api import create_api
from notify_gateway.settings import GatewaySettings
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import bearer

BODY = {"user_id": 1, "message": "x", "type": "email"}
PUBLIC = ("/livez", "/readyz", "/docs", "/openapi.json", "/asyncapi")
BODIES = ("POST", "PUT")
SOME_ID = "01a2107e-2b08-7f6c-80e3-ee68c821945a"
ROUTES = [
    ("POST", "/api/notifications", {Scope.SEND}),
    ("GET", "/api/notifications", {Scope.READ}),
    ("GET", f"/api/notifications/{SOME_ID}", {Scope.READ}),
    ("GET", "/api/notifications/1", {Scope.READ}),
    ("POST", f"/api/notifications/{SOME_ID}/cancel", {Scope.ADMIN, Scope.SEND}),
    ("GET", f"/api/deliveries/{SOME_ID}", {Scope.READ}),
    ("POST", f"/api/deliveries/{SOME_ID}/retry", {Scope.ADMIN}),
    ("POST", "/api/deliveries/retry", {Scope.ADMIN}),
    ("GET", f"/api/deliveries/retry/{SOME_ID}", {Scope.ADMIN}),
    ("GET", "/api/events?channel=fax", {Scope.READ}),
    ("GET", "/api/overview", {Scope.OPERATOR}),
    ("GET", "/api/links", {Scope.READ}),
    ("GET", "/api/users/1/channels", {Scope.RECIPIENTS_READ}),
    ("GET", "/api/users/1/channels/email", {Scope.RECIPIENTS_READ}),
    ("PUT", "/api/users/1/channels/email", {Scope.RECIPIENTS_WRITE}),
    ("DELETE", "/api/users/1/channels/email", {Scope.RECIPIENTS_WRITE}),
    ("POST", "/v1/keys", {Scope.ADMIN}),
    ("GET", "/v1/keys", {Scope.ADMIN}),
    ("DELETE", f"/v1/keys/{SOME_ID}", {Scope.ADMIN}),
    ("POST", "/v1/notifications", {Scope.SEND}),
    ("GET", "/v1/notifications", {Scope.READ}),
    ("GET", f"/v1/notifications/{SOME_ID}", {Scope.READ}),
    ("POST", f"/v1/notifications/{SOME_ID}/cancel", {Scope.ADMIN, Scope.SEND}),
    ("GET", "/v1/deliveries", {Scope.READ}),
    ("GET", f"/v1/deliveries/{SOME_ID}", {Scope.READ}),
    ("POST", f"/v1/deliveries/{SOME_ID}/retry", {Scope.ADMIN}),
    ("POST", "/v1/retries", {Scope.ADMIN}),
    ("POST", "/v1/retries/preview", {Scope.ADMIN}),
    ("GET", f"/v1/retries/{SOME_ID}", {Scope.ADMIN}),
    ("GET", "/v1/users/x/channels", {Scope.RECIPIENTS_READ}),
    ("GET", "/v1/users/x/channels/email", {Scope.RECIPIENTS_READ}),
    ("PUT", "/v1/users/x/channels/email", {Scope.RECIPIENTS_WRITE}),
    ("DELETE", "/v1/users/x/channels/email", {Scope.RECIPIENTS_WRITE}),
    ("GET", "/v1/events?channel=fax", {Scope.READ}),
    ("GET", "/v1/overview", {Scope.OPERATOR}),
    ("GET", "/v1/links", {Scope.READ}),
]


@pytest.mark.parametrize(("method", "path"), [route[:2] for route in ROUTES])
async def test_missing_or_unknown_key_returns_401(secured_api: httpx.AsyncClient, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer ntf_unknown"}, {"Authorization": "Basic bm90OmE="}):
        response = await secured_api.request(method, path, headers=headers, json=BODY if method in BODIES else None)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert response.json()["status"] == 401


@pytest.mark.parametrize(("method", "path", "scopes"), ROUTES)
async def test_each_route_accepts_exactly_its_scopes(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, method: str, path: str, scopes: set[Scope]
) -> None:
    body = BODY if path == "/api/notifications" else {}
    for granted in Scope:
        response = await secured_api.request(
            method, path, headers=await bearer(engine, granted), json=body if method in BODIES else None
        )
        assert (response.status_code == 403) == (granted not in scopes), response.text


@pytest.mark.parametrize("path", PUBLIC)
async def test_public_routes_need_no_key(secured_api: httpx.AsyncClient, path: str) -> None:
    assert (await secured_api.get(path)).status_code == 200


def test_every_route_is_public_or_covered_by_these_tests(postgres: PostgresSettings) -> None:
    settings = {**postgres.model_dump(), "auth": "on"}
    documented = create_api(Gateway(GatewaySettings.model_validate(settings))).openapi()["paths"]
    for path, operations in documented.items():
        for method in operations:
            pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
            is_tested = any(
                method.upper() == route[0] and re.fullmatch(pattern, route[1].partition("?")[0]) for route in ROUTES
            )
            assert is_tested != (path in PUBLIC), f"{method} {path}"


async def test_key_is_checked_before_the_body_is_read(secured_api: httpx.AsyncClient) -> None:
    for content in (b"{bad", b" " * (MAX_BODY + 1)):
        assert (await secured_api.post("/api/notifications", content=content)).status_code == 401


@pytest.mark.parametrize(("method", "path", "scopes"), [route for route in ROUTES if route[0] in BODIES])
async def test_scopes_are_checked_before_the_body_is_read(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, method: str, path: str, scopes: set[Scope]
) -> None:
    headers = await bearer(engine, *set(Scope) - scopes)
    for content in (b"{bad", b" " * (MAX_BODY + 1)):
        assert (await secured_api.request(method, path, content=content, headers=headers)).status_code == 403


async def test_tenant_sees_only_its_own_notifications(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    ours = await bearer(engine, *Scope, tenant="ours")
    theirs = await bearer(engine, *Scope, tenant="theirs")
    key = {"Idempotency-Key": "the same"}
    created = (await secured_api.post("/api/notifications", json=BODY, headers={**ours, **key})).json()
    other = (await secured_api.post("/api/notifications", json=BODY, headers={**theirs, **key})).json()
    assert other["id"] != created["id"]
    for method, path in (
        ("GET", f"/api/notifications/{created['id']}"),
        ("POST", f"/api/notifications/{created['id']}/cancel"),
        ("POST", f"/api/deliveries/{created['deliveries'][0]['id']}/retry"),
    ):
        assert (await secured_api.request(method, path, headers=theirs)).status_code == 404
    for path in ("/api/notifications", "/api/notifications?user_id=1"):
        listed = (await secured_api.get(path, headers=ours)).json()["items"]
        assert [each["id"] for each in listed] == [created["id"]]
    assert [each["id"] for each in (await secured_api.get("/api/notifications/1", headers=ours)).json()] == [
        created["id"]
    ]
