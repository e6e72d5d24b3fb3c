"""Creating and reading notifications, which must work while RabbitMQ is unavailable."""

import httpx
import pytest
from notify_database.engine import PostgresSettings
from support.gateway import BODY, Json, post
from support.services import NOWHERE, running_gateway


async def test_created_notification_can_be_read_back(api: httpx.AsyncClient) -> None:
    created = await post(api)
    assert created["user_id"] == 123
    assert created["message"] == "Your code: 11111"
    assert (created["type"], created["channels"], created["status"]) == ("telegram", ["telegram"], "pending")
    assert [delivery["status"] for delivery in created["deliveries"]] == ["pending"]
    response = await api.get(f"/api/notifications/{created['id']}")
    assert (response.status_code, response.json()) == (200, created)


async def test_each_channel_gets_its_own_delivery(api: httpx.AsyncClient) -> None:
    created = await post(
        api,
        type=None,
        channels=["telegram", "email"],
        subject="Hello",
        recipient={"email": "a@example.org", "telegram": "123456789"},
        metadata={"order": "5512"},
    )
    assert (created["type"], created["subject"], created["metadata"]) == (None, "Hello", {"order": "5512"})
    recipients = {delivery["channel"]: delivery["recipient"] for delivery in created["deliveries"]}
    assert recipients == {"telegram": "123456789", "email": "a@example.org"}
    stored = (await api.get(f"/api/notifications/{created['id']}")).json()
    assert sorted(stored["channels"]) == ["email", "telegram"]


async def test_real_provider_requires_a_recipient(postgres: PostgresSettings) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, email_provider="smtp") as api:
        await post(api)
        both: Json = {**BODY, "type": None, "channels": ["telegram", "email"]}
        refused = await api.post("/api/notifications", json=both)
        assert refused.status_code == 422
        assert [error["field"] for error in refused.json()["errors"]] == ["recipient.email"]
        for address in ("a@example.org", "permanent@simulator.invalid"):
            await post(api, type="email", recipient={"email": address})


async def test_email_options_are_stored_and_returned(api: httpx.AsyncClient) -> None:
    own = {"html": "<p>Hello</p>", "reply_to": "a@example.org", "list_unsubscribe": "https://example.org/u?t=1"}
    created = await post(api, type="email", email=own)
    assert created["email"] == own
    assert (await api.get(f"/api/notifications/{created['id']}")).json() == created
    assert (await post(api))["email"] is None
    # Lists omit these options because they can be long.
    assert all("email" not in each for each in (await api.get("/api/notifications")).json()["items"])


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_trailing_slash_works_without_a_redirect(api: httpx.AsyncClient, method: str) -> None:
    response = await api.request(method, "/api/notifications/", json=BODY if method == "POST" else None)
    assert response.status_code == (201 if method == "POST" else 200)
