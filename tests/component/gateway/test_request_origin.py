"""The gateway rejects requests for another host, and requests that another web site made a browser send."""

import asyncio
from typing import Any

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.http.principal import Scope
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import BODY, bearer
from support.services import NOWHERE, running_gateway, served_gateway

OWN = "localhost:8080"
READS = ("/", "/console/main.js", "/docs", "/openapi.json", "/livez", "/api/notifications", "/api/events")


async def status(api: httpx.AsyncClient, method: str, path: str, **headers: str) -> int:
    """Send a request whose underscores in header names stand for hyphens; return the status of the problem."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content: dict[str, Any] = {"json": BODY} if (method, path) == ("POST", "/api/notifications") else {}
    response = await api.request(method, path, headers=named, **content)
    if response.is_error:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code
    assert "access-control-allow-origin" not in response.headers
    return response.status_code


@pytest.mark.parametrize("path", READS)
async def test_foreign_host_cannot_read_without_authentication(api: httpx.AsyncClient, path: str) -> None:
    for host in (
        "attacker.test",
        "attacker.test:8080",
        "localhost.attacker.test",
        "127.0.0.1.attacker.test",
        "",
        "10.0.0.1",
    ):
        assert await status(api, "GET", path, Host=host) == 421


async def test_foreign_host_cannot_post_without_authentication(api: httpx.AsyncClient) -> None:
    assert await status(api, "POST", "/api/notifications", Host="attacker.test") == 421
    assert (await api.get("/api/notifications")).json()["items"] == []


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:1", "127.9.8.7", "[::1]", "[::1]:8080", "localhost:"],
)
async def test_loopback_hosts_are_always_accepted(api: httpx.AsyncClient, host: str) -> None:
    assert await status(api, "GET", "/livez", Host=host) == 200


@pytest.mark.parametrize("host", ["local host", "user@localhost", "localhost/x", "localhost:80x", "[::1", "[::1]x"])
async def test_invalid_host_gets_a_400(api: httpx.AsyncClient, host: str) -> None:
    assert await status(api, "GET", "/livez", Host=host) == 400


async def test_allowed_hosts_are_accepted_with_any_port(postgres: PostgresSettings) -> None:
    allowed = "notify.example.org:443 Gateway [2001:db8::1] 10.0.0.1"
    async with running_gateway(NOWHERE, postgres, relaying=False, allowed_hosts=allowed) as api:
        for host in ("notify.example.org", "NOTIFY.example.org:8080", "gateway", "[2001:db8::1]:8080", "10.0.0.1", OWN):
            assert await status(api, "GET", "/livez", Host=host) == 200, host
        for host in ("example.org", "notify.example.org.", "a.notify.example.org", "10.0.0.2"):
            assert await status(api, "GET", "/livez", Host=host) == 421, host


async def test_authentication_admits_any_host_unless_hosts_are_named(postgres: PostgresSettings) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:
        assert await status(api, "GET", "/livez", Host="notify.example.org") == 200
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on", allowed_hosts="notify.example.org") as api:
        assert await status(api, "GET", "/livez", Host="notify.example.org") == 200
        assert await status(api, "GET", "/livez", Host="attacker.test") == 421


async def test_health_port_is_exempt(api: httpx.AsyncClient) -> None:
    for path in ("/livez", "/metrics"):
        assert await status(api, "GET", f"http://localhost:8085{path}", Host="attacker.test") == 200


@pytest.mark.parametrize(
    ("request_head", "expected"),
    [
        (b"GET /livez HTTP/1.1\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: attacker.test\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost \r\n", 200),
        (b"GET /livez HTTP/1.0\r\n", 200),
        (b"GET /livez HTTP/1.0\r\nHost: attacker.test\r\n", 421),
        (b"GET http://attacker.test/livez HTTP/1.1\r\nHost: localhost\r\n", 421),
        (b"GET HTTP://attacker.test:8080/livez HTTP/1.1\r\nHost: localhost\r\n", 421),
        (b"GET http://localhost@attacker.test/livez HTTP/1.1\r\nHost: localhost\r\n", 421),
        (b"GET http://attacker.test/livez HTTP/1.0\r\n", 421),
        (b"GET http://localhost/livez HTTP/1.1\r\nHost: attacker.test\r\n", 200),
        (b"GET http://[::1]:8080/livez HTTP/1.1\r\nHost: attacker.test\r\n", 200),
        (b"GET http://localhost/livez HTTP/1.1\r\n", 400),
        (b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: attacker.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 421),
    ],
    ids=repr,
)
async def test_request_names_its_host_once(postgres: PostgresSettings, request_head: bytes, expected: int) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(request_head + b"\r\n")
        assert int((await reader.readline()).split()[1]) == expected
        writer.close()


FOREIGN = [
    {"Origin": "http://attacker.test"},
    {"Origin": "http://attacker.test:8080"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://localhost"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": f"http://{OWN}"},
    {"Sec_Fetch_Site": "anything"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=repr)
async def test_other_sites_cannot_cause_changes(api: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for method, path in (
        ("POST", "/api/notifications"),
        ("POST", "/api/notifications/01a213b5-edad-7150-bcca-8d780880ad2d/cancel"),
        ("DELETE", "/api/users/1/channels/email"),
        ("PUT", "/api/users/1/channels/email"),
        ("PATCH", "/"),
    ):
        assert await status(api, method, path, Host=OWN, **headers) == 403


async def test_other_sites_cannot_cause_changes_with_a_key(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    headers = await bearer(engine, Scope.SEND)
    headers["Host"] = OWN
    assert await status(secured_api, "POST", "/api/notifications", Origin="http://attacker.test", **headers) == 403
    assert await status(secured_api, "POST", "/api/notifications", Origin=f"http://{OWN}", **headers) == 201


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": f"http://{OWN}"},
        {"Origin": f"https://{OWN}"},  # TLS ends at the reverse proxy
        {"Origin": "http://LOCALHOST:8080"},
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "same-origin", "Origin": "https://notify.example.org"},  # a reverse proxy rewrote `Host`
    ],
    ids=repr,
)
async def test_own_pages_and_other_programs_can_cause_changes(api: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert await status(api, "POST", "/api/notifications", Host=OWN, **headers) == 201


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("localhost", "http://localhost", 201),
        ("localhost:80", "http://localhost", 201),
        ("localhost:443", "https://localhost", 201),
        ("localhost:80", "https://localhost", 403),
        ("localhost:443", "http://localhost", 403),
        ("localhost", "http://localhost:8080", 403),
        ("[::1]:443", "https://[::1]", 201),
    ],
)
async def test_origin_is_compared_with_default_ports(
    api: httpx.AsyncClient, host: str, origin: str, expected: int
) -> None:
    assert await status(api, "POST", "/api/notifications", Host=host, Origin=origin) == expected


async def test_cors_preflight_is_refused(api: httpx.AsyncClient) -> None:
    preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    for origin in ("http://attacker.test", f"http://{OWN}"):
        assert await status(api, "OPTIONS", "/api/notifications", Host=OWN, Origin=origin, **preflight) == 405


async def test_links_from_other_sites_can_be_followed(api: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/api/notifications"):
        assert await status(api, "GET", path, Host=OWN, Sec_Fetch_Site="cross-site") == 200
