"""Notifications that are posted with a test key: they are marked, and so are their messages."""

import json
from uuid import UUID

import httpx
import pytest
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_gateway.http.principal import Scope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand
from support.gateway import BODY, bearer
from support.services import NOWHERE, running_gateway

RECIPIENT = {"telegram": "123456789"}


@pytest.fixture
async def real_key(postgres: PostgresSettings, engine: AsyncEngine) -> dict[str, str]:  # noqa: ARG001 - it is migrated
    return await bearer(engine, Scope.SEND, Scope.READ, Scope.ADMIN, Scope.RECIPIENTS_READ)


@pytest.fixture
async def test_key(engine: AsyncEngine) -> dict[str, str]:
    headers = await bearer(engine, Scope.SEND, Scope.READ, Scope.ADMIN, Scope.RECIPIENTS_READ)
    async with engine.begin() as connection:
        latest = "SELECT id FROM api_keys ORDER BY created_at DESC, id DESC LIMIT 1"
        await connection.execute(text(f"UPDATE api_keys SET test = true WHERE id = ({latest})"))  # noqa: S608 - a constant
    return headers


async def test_notification_of_a_test_key_is_marked_and_needs_no_recipient(
    postgres: PostgresSettings, real_key: dict[str, str], test_key: dict[str, str]
) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on", telegram_provider="bot_api") as api:
        refused = await api.post("/api/notifications", json=BODY, headers=real_key)
        real = await api.post("/api/notifications", json={**BODY, "recipient": RECIPIENT}, headers=real_key)
        tested = await api.post("/api/notifications", json=BODY, headers=test_key)
        assert [each.status_code for each in (refused, real, tested)] == [422, 201, 201]
        marks = {real.json()["id"]: False, tested.json()["id"]: True}
        assert {each.json()["id"]: each.json()["test"] for each in (real, tested)} == marks
        page = (await api.get("/api/notifications", headers=real_key)).json()
        assert {item["id"]: item["test"] for item in page["items"]} == marks
        for id_, mark in marks.items():
            assert (await api.get(f"/api/notifications/{id_}", headers=real_key)).json()["test"] is mark


async def test_test_and_real_requests_do_not_share_idempotency_keys(
    secured_api: httpx.AsyncClient, real_key: dict[str, str], test_key: dict[str, str]
) -> None:
    for name, first, second in (("a", test_key, real_key), ("b", real_key, test_key)):
        responses = [
            await secured_api.post("/api/notifications", json=BODY, headers={**key, "Idempotency-Key": name})
            for key in (first, second, first, second)
        ]
        assert [each.status_code for each in responses] == [201] * 4, name
        assert [each.content for each in responses[2:]] == [each.content for each in responses[:2]]
        assert responses[0].json()["id"] != responses[1].json()["id"]
        assert [each.json()["test"] for each in responses[:2]] == [key is test_key for key in (first, second)]


async def test_message_of_a_test_delivery_is_marked_however_it_reaches_rabbitmq(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    engine: AsyncEngine,
    hand: Hand,
    test_key: dict[str, str],
) -> None:
    body = {**BODY, "recipient": RECIPIENT}
    # One is left in the outbox, so that the relay has to read it from there.
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:
        assert (await api.post("/api/notifications", json=body, headers=test_key)).status_code == 201
    async with running_gateway(rabbit, postgres, auth="on") as api:
        messages = [await hand.next_message("notifications.telegram")]
        created = (await api.post("/api/notifications", json=body, headers=test_key)).json()
        messages.append(await hand.next_message("notifications.telegram"))
        delivery_id = UUID(created["deliveries"][0]["id"])
        async with engine.begin() as connection:
            failed = text("UPDATE deliveries SET status = 'failed', attempt = 1, failures = 1 WHERE id = :id")
            await connection.execute(failed, {"id": delivery_id})
        assert (await api.post(f"/api/deliveries/{delivery_id}/retry", headers=test_key)).status_code == 202
        messages.append(await hand.next_message("notifications.telegram"))
    sent = [json.loads(message.body) for message in messages]
    assert [each["round"] for each in sent] == [1, 1, 2]
    assert {(each["test"], each["recipient"], each["test_recipient"]) for each in sent} == {(True, None, "123456789")}
