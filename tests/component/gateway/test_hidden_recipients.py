"""Keys without the scope `recipients:read` see no recipients except those that their requests name."""

from uuid import UUID

import httpx
import pytest
from notify_gateway.http.principal import Scope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import Json, bearer, soon

SECRET = "stored@example.org"
STORED = "/api/users/1/channels/email"
BODY: Json = {"user_id": 1, "message": "x", "type": "email"}
Headers = dict[str, str]


@pytest.fixture
async def owner(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> Headers:
    """Store a recipient, and return the headers of a key with every scope."""
    headers = await bearer(engine, *Scope)
    stored = await secured_api.put(STORED, json={"recipient": SECRET}, headers=headers)
    assert stored.json()["recipient"] == SECRET
    return headers


async def test_put_returns_what_is_stored_only_to_keys_that_may_read_it(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, owner: Headers
) -> None:
    writer = await bearer(engine, Scope.RECIPIENTS_WRITE, Scope.SEND, Scope.READ)
    for settings in ({}, {"opted_out": True}, {"recipient": SECRET}):
        response = await secured_api.put(STORED, json=settings, headers=writer)
        assert (response.status_code, response.content) == (204, b"")
    assert (await secured_api.get(STORED, headers=writer)).status_code == 403
    stored = (await secured_api.get(STORED, headers=owner)).json()
    assert (stored["recipient"], stored["opted_out"]) == (SECRET, True)


@pytest.mark.parametrize("idempotency_key", [{}, {"Idempotency-Key": "once"}], ids=["", "idempotent"])
async def test_post_does_not_reveal_a_stored_recipient(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, owner: Headers, idempotency_key: Headers
) -> None:
    sender = {**await bearer(engine, Scope.SEND, Scope.READ), **idempotency_key}
    body = {**BODY, "type": None, "channels": ["email", "telegram"], "recipient": {"telegram": "42"}, "message": "ü"}
    responses = [await secured_api.post("/api/notifications", json=body, headers=sender) for _ in range(2)]
    for created in responses:
        assert created.status_code == 201
        assert SECRET not in created.text
        assert {each["channel"]: each["recipient"] for each in created.json()["deliveries"]} == {
            "email": None,
            "telegram": "42",
        }
    seen = await secured_api.post("/api/notifications", json=body, headers={**owner, **idempotency_key})
    assert seen.json()["deliveries"][0]["recipient"] == SECRET
    assert seen.json().keys() == responses[0].json().keys()


async def test_replay_does_not_reveal_a_stored_recipient(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, owner: Headers
) -> None:
    key = {"Idempotency-Key": "once"}
    first = await secured_api.post("/api/notifications", json=BODY, headers={**owner, **key})
    assert first.json()["deliveries"][0]["recipient"] == SECRET
    sender = await bearer(engine, Scope.SEND)
    replay = await secured_api.post("/api/notifications", json=BODY, headers={**sender, **key})
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert SECRET not in replay.text
    assert replay.json()["id"] == first.json()["id"]


async def test_reading_and_changing_notifications_does_not_reveal_recipients(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, owner: Headers
) -> None:
    """The provider's error texts are hidden, too, because they often quote the recipient."""
    posted = await secured_api.post("/api/notifications", json={**BODY, "send_at": soon(hours=1)}, headers=owner)
    notification, delivery = posted.json()["id"], posted.json()["deliveries"][0]["id"]
    attempt = """INSERT INTO attempts (delivery_id, attempt, round, outcome, error_text, started_at, finished_at)
        VALUES (:id, 1, 1, 'failed', :text, now(), now())"""
    async with engine.begin() as connection:
        await connection.execute(text(attempt), {"id": UUID(delivery), "text": f"unknown user {SECRET}"})
        await connection.execute(text("UPDATE deliveries SET status = 'failed'"))
    reader = await bearer(engine, Scope.READ, Scope.ADMIN, Scope.SEND, Scope.RECIPIENTS_WRITE)
    requests = [
        ("GET", f"/api/notifications/{notification}", 200, True),
        ("GET", "/api/notifications", 200, True),
        ("GET", "/api/notifications/1", 200, True),
        ("GET", f"/api/deliveries/{delivery}", 200, True),
        ("POST", f"/api/notifications/{notification}/cancel", 409, True),
        ("POST", f"/api/deliveries/{delivery}/retry", 202, True),
        ("POST", f"/api/notifications/{notification}/cancel", 200, False),
    ]
    for method, path, status, is_repeatable in requests:
        response = await secured_api.request(method, path, headers=reader)
        assert response.status_code == status, response.text
        assert SECRET not in response.text, path
        if is_repeatable and method == "GET":
            assert SECRET in (await secured_api.request(method, path, headers=owner)).text
