"""Paths that differ from a route only in characters that no route contains."""

from itertools import product

import httpx
from notify_database.engine import PostgresSettings
from notify_gateway.application import Gateway
from notify_gateway.http.principal import Scope
from notify_gateway.http_api import create_api
from notify_gateway.settings import GatewaySettings
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import BODY, bearer, rows

# A regular expression's `$` also matches before a final line feed.
ROUTES = [
    ("POST", "/api/notifications"),
    ("POST", "/api/notifications/"),
    ("GET", "/api/notifications"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys"),
    ("GET", "/livez"),
    ("GET", "/docs"),
    ("GET", "/docs/assets/favicon.png"),
    ("GET", "/console/console.js"),
    ("GET", "/"),
]


async def test_path_with_a_control_character_is_no_route(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    key = await bearer(engine, *Scope)
    for (method, path), end, headers in product(ROUTES, ("%0A", "%0D", "%00", "%7F", "%C2%85"), ({}, key)):
        response = await secured_api.request(method, path + end, json=BODY, headers=headers)
        assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json"), path
    assert await rows(engine, "SELECT 1 FROM notifications") == []


async def test_documented_route_of_posted_notifications_requires_a_key(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    """No request should reach this route, because `NotificationEndpoint` serves them all."""
    gateway = Gateway(GatewaySettings.model_validate({**postgres.model_dump(), "auth": "on"}))
    transport = httpx.ASGITransport(create_api(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as api:
        for path in ("/api/notifications", "/api/notifications/", "/api/notifications%0A"):
            assert (await api.post(path, json=BODY)).status_code == 401
            assert (await api.post(path, json=BODY, headers=await bearer(engine, Scope.READ))).status_code == 403
            assert (await api.post(path, json=BODY, headers=await bearer(engine, Scope.SEND))).status_code == 404
