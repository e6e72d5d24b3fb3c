"""Paths that differ from a route only in characters that no route contains."""

from itertools import product
from urllib.parse import quote

import httpx
import pytest
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


async def test_very_long_path_is_no_route(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Each route would read all of it, and so would the search for the methods that are allowed."""
    path = f"/v1/users/{'a' * 1_000}/channels"
    for method, headers in product(("GET", "OPTIONS"), ({}, await bearer(engine, *Scope))):
        response = await secured_api.request(method, path, headers=headers)
        assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")


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


@pytest.mark.parametrize(
    "user", ["\U0001f469\u200d\U0001f4bb", "a\u00a0b", "\u3000", "\u202eabc", "a b;c?#%2F"], ids=ascii
)
async def test_every_user_id_that_can_be_posted_can_be_in_a_path(api: httpx.AsyncClient, user: str) -> None:
    notification = {"user_id": user, "message": "x", "channels": ["email"]}
    assert (await api.post("/v1/notifications", json=notification)).status_code == 201
    path = f"/v1/users/{quote(user, safe='')}/channels"
    stored = await api.put(f"{path}/email", json={"opted_out": True})
    assert stored.status_code == 200, stored.text
    assert [each["opted_out"] for each in (await api.get(path)).json()["items"]] == [True]


@pytest.mark.parametrize("encoded", ["Jos%E9", "%FF", "%ED%A0%80"])
async def test_path_that_is_not_utf_8_is_no_route(api: httpx.AsyncClient, engine: AsyncEngine, encoded: str) -> None:
    """Otherwise, different ids of a client that encodes them differently would belong to the same user."""
    response = await api.put(f"/v1/users/{encoded}/channels/email", json={"opted_out": True})
    assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")
    assert await rows(engine, "SELECT 1 FROM user_channels") == []
