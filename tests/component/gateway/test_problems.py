"""Requests that the gateway rejects with problem details, which state the reason."""

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from notify_gateway.http.principal import Scope
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette._utils import get_route_path
from starlette.types import Scope as StarletteScope
from support.gateway import BODY, bearer

JSON_HEADERS = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**BODY, "user_id": 0}, "user_id"),
        ({**BODY, "message": " "}, "message"),
        ({**BODY, "message": "a\x00b"}, "message"),
        ({**BODY, "message": "\ud800"}, "message"),
        ({**BODY, "type": "pigeon"}, "type"),
        ({**BODY, "channels": ["email"]}, "channels"),
        ({"user_id": 1, "message": "x"}, "channels"),
        ({"user_id": 1, "message": "x", "channels": ["email", "pigeon"]}, "channels.1"),
        ({**BODY, "colour": "red"}, "colour"),
        ({**BODY, "recipient": {"email": "a@example.org"}}, "recipient.email"),
        ({**BODY, "type": "email", "recipient": {"email": "a@example.invalid"}}, "recipient.email"),
        ({**BODY, "type": "email", "recipient": {"email": "delivery@simulator.invalid"}}, "recipient.email"),
        ({**BODY, "recipient": {"telegram": "@simulator_delivery"}}, "recipient.telegram"),
        ({**BODY, "type": "webhook", "recipient": {"webhook": "example.org"}}, "recipient.webhook"),
        ({**BODY, "type": "webhook", "recipient": {"webhook": "https://a:b@example.org"}}, "recipient.webhook"),
        (
            {**BODY, "type": "webhook", "recipient": {"webhook": "https://delivery.simulator.invalid"}},
            "recipient.webhook",
        ),
        ({**BODY, "email": {"html": "<p>x</p>"}}, "email"),
        ({**BODY, "type": "email", "email": {"html": " "}}, "email.html"),
        ({**BODY, "type": "email", "email": {"html": "<p>\x00"}}, "email.html"),
        ({**BODY, "type": "email", "email": {"reply_to": "a@example.org\r\nBcc: b@example.org"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"reply_to": "jörg@example.org"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"reply_to": "Shop <a@example.org>"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"reply_to": "delivered@simulator.invalid"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"list_unsubscribe": "http://example.org"}}, "email.list_unsubscribe"),
        (
            {**BODY, "type": "email", "email": {"list_unsubscribe": "https://example.org/" + "x" * 900}},
            "email.list_unsubscribe",
        ),
        ({**BODY, "type": "email", "email": {"text": "x"}}, "email.text"),
        ({**BODY, "metadata": {"a": 1}}, "metadata.a"),
        ({"message": "x", "type": "email"}, "user_id"),
        ([], "body"),
    ],
    ids=repr,
)
async def test_invalid_body_gets_problem_details_that_name_the_field(
    api: httpx.AsyncClient,
    body: Any,
    field: str,
) -> None:
    response = await api.post("/api/notifications", content=json.dumps(body), headers=JSON_HEADERS)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["type"], problem["status"]) == ("about:blank", 422)
    assert field in [error["field"] for error in problem["errors"]]
    assert field in problem["detail"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"user_id": 1'], ids=repr)
async def test_malformed_json_gets_problem_details(api: httpx.AsyncClient, content: bytes) -> None:
    response = await api.post("/api/notifications", content=content, headers=JSON_HEADERS)
    assert response.status_code in {400, 422}
    assert response.headers["content-type"] == "application/problem+json"


async def test_unknown_ids_paths_and_methods_get_problem_details(api: httpx.AsyncClient) -> None:
    for method, path, status in (
        ("GET", f"/api/notifications/{uuid4()}", 404),
        ("GET", "/api/notifications/not-an-id", 422),
        ("GET", "/nowhere", 404),
        ("DELETE", "/api/notifications", 405),
        ("GET", "/api/notifications?colour=red", 422),
        ("GET", "/api/notifications/5?status=lost", 422),
        ("GET", f"/api/notifications/{2**63}", 422),
        ("GET", f"/api/notifications/{'9' * 900}", 422),
        ("GET", f"/api/notifications/{'9' * 5000}", 404),
        ("GET", "/api/notifications/0", 422),
        ("GET", f"/api/notifications/{uuid4()}?status=sent", 422),
        ("GET", "/api/notifications?created_before=0001-01-01T00:00:00Z", 422),
        ("GET", "/api/notifications?created_after=9999-12-31T23:59:59.999999Z", 200),
        ("GET", "/api/notifications?created_after=2026-01-01T00:00:00", 422),
    ):
        response = await api.request(method, path)
        assert response.status_code == status, path
        assert status == 200 or response.headers["content-type"] == "application/problem+json", path


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
async def test_ambiguous_json_is_rejected_with_a_reason(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, content: bytes
) -> None:
    headers = {**await bearer(engine, Scope.SEND), "Content-Type": "application/json"}
    response = await secured_api.post("/api/notifications", content=content, headers=headers)
    assert response.status_code == 422
    assert response.json()["detail"].startswith("body: not valid JSON: ")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/notifications"), ("POST", "/v1/keys"), ("PUT", "/v1/users/1/channels/email")],
)
async def test_body_that_is_not_declared_as_json_names_the_header(
    api: httpx.AsyncClient, method: str, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await api.request(method, path, content=b'{"user_id": "1"}', headers=headers)
    assert (response.status_code, response.json()["detail"]) == (422, "content-type: must be application/json")
    assert response.json()["errors"] == [
        {"location": "header", "field": "content-type", "detail": "must be application/json"}
    ]


@pytest.mark.parametrize("path", ["/v1/notifications", "/v1/keys"])
async def test_body_that_is_no_object_does_not_name_a_class(api: httpx.AsyncClient, path: str) -> None:
    response = await api.post(path, content=b'["user_id"]', headers=JSON_HEADERS)
    assert (response.status_code, response.json()["detail"]) == (422, "body: must be a JSON object")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/notifications", "GET, POST"),
        ("POST", "/v1/users/1/channels/email", "DELETE, GET, PUT"),
        ("OPTIONS", "/livez", "GET"),
        ("POST", "/console/main.js", "GET, HEAD"),
        ("PUT", "/docs/assets/favicon.png", "GET, HEAD"),
    ],
)
async def test_allow_lists_all_methods_of_the_resource(
    api: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await api.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_unsupported_method_costs_about_as_much_as_an_unknown_path(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing a long path with all routes takes time, which a client without a key can take up."""
    compared: list[str] = []

    def count(scope: StarletteScope) -> str:
        compared.append(scope["path"])
        return get_route_path(scope)

    monkeypatch.setattr("fastapi.routing.get_route_path", count)
    assert (await api.get("/nowhere")).status_code == 404
    unknown = len(compared)
    assert (await api.post("/docs")).status_code == 405
    assert len(compared) - unknown <= 3 * unknown
