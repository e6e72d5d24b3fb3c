"""Users' stored channel settings: recipients and opt-outs."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, StatusChanges
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.http.principal import Scope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on, prepare_topology
from support.database import blocked_or_done
from support.gateway import bearer
from support.services import NOWHERE, running_gateway

FAIL = text("UPDATE deliveries SET status = 'failed', attempt = 3, failures = 3")

Json = dict[str, Any]


@pytest.fixture
async def hand(rabbit: RabbitSettings) -> AsyncIterator[Hand]:
    bindings = [*topology.dead_letters(), *(topology.deliveries(channel) for channel in Channel)]
    await prepare_topology(rabbit, bindings, [topology.EVENTS])
    async with hand_on(rabbit) as hand:
        yield hand


async def store(api: httpx.AsyncClient, channel: str, user_id: int = 1, **settings: Any) -> Json:
    response = await api.put(f"/api/users/{user_id}/channels/{channel}", json=settings)
    assert response.status_code == 200, response.text
    stored: Json = response.json()
    return stored


async def post(api: httpx.AsyncClient, *channels: str, key: str | None = None, **change: Any) -> Json:
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"user_id": 1, "message": "x", "channels": channels, **change}
    response = await api.post("/api/notifications", json=body, headers=headers)
    assert response.status_code == 201, response.text
    created: Json = response.json()
    return created


def delivery_summaries(notification: Json) -> dict[str, tuple[str, str | None, str | None]]:
    deliveries = notification["deliveries"]
    return {each["channel"]: (each["status"], each["reason"], each["recipient"]) for each in deliveries}


async def test_channel_settings_are_stored_replaced_and_deleted(api: httpx.AsyncClient) -> None:
    url = "/api/users/9223372036854775807/channels"
    assert (await api.get(f"{url}/email")).status_code == 404
    first = await store(api, "email", 2**63 - 1, recipient="a@BÜCHER.example")
    assert (first["channel"], first["recipient"], first["opted_out"]) == ("email", "a@bücher.example", False)
    second = await store(api, "email", 2**63 - 1, opted_out=True)
    assert (second["recipient"], second["opted_out"]) == ("a@bücher.example", True)
    third = await store(api, "email", 2**63 - 1, recipient=None)
    assert (third["recipient"], third["opted_out"]) == (None, True)
    # A new recipient does not undo an opt-out.
    second = await store(api, "email", 2**63 - 1, recipient="b@example.org")
    assert (second["recipient"], second["opted_out"]) == ("b@example.org", True)
    webhook = await store(api, "webhook", 2**63 - 1, recipient="https://hooks.example.org/shop")
    assert (await api.get(f"{url}/email")).json() == second
    assert (await api.get(url)).json() == [second, webhook]
    await store(api, "email", 2**63 - 1, opted_out=False)
    assert (await api.delete(f"{url}/email")).status_code == 204
    assert (await api.delete(f"{url}/email")).status_code == 404
    assert (await api.get(url)).json() == [webhook]


async def test_deleting_a_recipient_keeps_the_opt_out(api: httpx.AsyncClient) -> None:
    url = "/api/users/1/channels/email"
    await store(api, "email", recipient="a@example.org", opted_out=True)
    assert (await api.delete(url)).status_code == 204
    kept = (await api.get(url)).json()
    assert (kept["recipient"], kept["opted_out"]) == (None, True)
    again = await api.delete(url)
    assert (again.status_code, again.json()["detail"]) == (404, "User 1 has no stored email recipient.")
    assert (await api.get(url)).json() == kept
    assert delivery_summaries(await post(api, "email")) == {"email": ("cancelled", "opted_out", None)}


async def test_deleting_reveals_no_opt_out(api: httpx.AsyncClient) -> None:
    await store(api, "email", user_id=1, opted_out=True)
    responses = []
    for user_id in (1, 2):
        await store(api, "email", user_id)
        responses.append((await api.delete(f"/api/users/{user_id}/channels/email")).status_code)
    assert responses == [404, 404]
    assert [each["opted_out"] for each in (await api.get("/api/users/1/channels")).json()] == [True]
    assert (await api.get("/api/users/2/channels")).json() == []


async def test_recipient_is_deleted_while_an_opt_out_is_stored(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """The deletion waits for the row, and must then see the opt-out that was committed in the meantime."""
    await store(api, "email", recipient="a@example.org")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE user_channels SET opted_out = true"))
        deleting = asyncio.create_task(api.delete("/api/users/1/channels/email"))
        await blocked_or_done(engine, deleting)
    assert (await deleting).status_code == 204
    kept = (await api.get("/api/users/1/channels/email")).json()
    assert (kept["recipient"], kept["opted_out"]) == (None, True)


async def test_clearing_an_opt_out_requires_its_scope(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    url = "/api/users/1/channels/email"
    writer = await bearer(engine, Scope.RECIPIENTS_WRITE, Scope.RECIPIENTS_READ)
    clearer = await bearer(engine, Scope.RECIPIENTS_WRITE, Scope.RECIPIENTS_READ, Scope.OPT_OUTS_CLEAR)
    opted_out = (await secured_api.put(url, json={"opted_out": True}, headers=writer)).json()
    assert opted_out["opted_out"]
    # The response is the same for a user who has not opted out, so that it does not reveal who has.
    for user_id in (1, 2):
        refused = await secured_api.put(
            f"/api/users/{user_id}/channels/email",
            json={"recipient": "a@example.org", "opted_out": False},
            headers=writer,
        )
        assert (refused.status_code, refused.json()["detail"]) == (
            403,
            "This key does not have the scope opt-outs:clear.",
        )
        assert 'scope="opt-outs:clear"' in refused.headers["WWW-Authenticate"]
    assert (await secured_api.get(url, headers=writer)).json() == opted_out
    assert (await secured_api.put(url, json={"recipient": "a@example.org"}, headers=writer)).json()["opted_out"]
    cleared = (await secured_api.put(url, json={"opted_out": False}, headers=clearer)).json()
    assert (cleared["recipient"], cleared["opted_out"]) == ("a@example.org", False)


@pytest.mark.parametrize(
    ("channel", "settings", "field"),
    [
        ("email", {"recipient": "nobody"}, "recipient"),
        ("telegram", {"recipient": "a@example.org"}, "recipient"),
        ("webhook", {"recipient": "https://user:secret@example.org"}, "recipient"),
        ("webhook", {"recipient": "https://example.invalid"}, "recipient"),
        ("email", {"opted_out": "yes"}, "opted_out"),
        ("email", {"address": "a@example.org"}, "address"),
        ("fax", {}, "channel"),
    ],
)
async def test_invalid_channel_settings_are_rejected(
    api: httpx.AsyncClient, channel: str, settings: Json, field: str
) -> None:
    response = await api.put(f"/api/users/1/channels/{channel}", json=settings)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


async def test_stored_recipient_is_used_when_the_request_names_none(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    async with running_gateway(rabbit, postgres) as api:
        await store(api, "email", recipient="stored@example.org")
        await store(api, "email", 2, recipient="of-somebody-else@example.org")
        created = await post(api, "email", "telegram")
        assert delivery_summaries(created) == {
            "email": ("pending", None, "stored@example.org"),
            "telegram": ("pending", None, None),
        }
        await post(api, "email", recipient={"email": "named@example.org"})
        sent = [await hand.next_message("notifications.email") for _ in range(2)]
        recipients = [DeliveryRequested.model_validate_json(message.body).recipient for message in sent]
        assert set(recipients) == {"stored@example.org", "named@example.org"}  # in any order
        again = (await api.get(f"/api/notifications/{created['id']}")).json()
        assert delivery_summaries(again) == delivery_summaries(created)


async def test_real_provider_requires_a_stored_or_requested_recipient(
    postgres: PostgresSettings,
) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, email_provider="smtp") as api:
        body = {"user_id": 1, "message": "x", "type": "email"}
        refused = await api.post("/api/notifications", json=body, headers={"Idempotency-Key": "once"})
        assert [error["field"] for error in refused.json()["errors"]] == ["recipient.email"]
        await store(api, "email", recipient="a@example.org")
        created = await post(api, "email", key="once")
        await api.delete("/api/users/1/channels/email")
        # A repeated request gets the first response, although the recipient was deleted.
        assert await post(api, "email", key="once") == created
        await store(api, "email", opted_out=True)
        assert delivery_summaries(await post(api, "email")) == {"email": ("cancelled", "opted_out", None)}


async def test_delivery_to_an_opted_out_channel_is_cancelled(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    events = await hand.listen("notifications.events", "email.cancelled")
    async with running_gateway(rabbit, postgres) as api:
        await store(api, "email", recipient="a@example.org", opted_out=True)
        created = await post(api, "email", "telegram", key="once")
        assert delivery_summaries(created) == {
            "email": ("cancelled", "opted_out", "a@example.org"),
            "telegram": ("pending", None, None),
        }
        [change] = StatusChanges.model_validate_json((await events.get()).body).changes
        assert change.notification_id == UUID(created["id"])
        assert await post(api, "email", "telegram", key="once") == created
        only = await post(api, "email")
        assert only["status"] == "cancelled"
        listed = (await api.get("/api/notifications", params={"user_id": 1, "status": "cancelled"})).json()["items"]
        assert [delivery_summaries(each) for each in listed] == [delivery_summaries(only)]
        await hand.next_message("notifications.telegram")
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1 FROM outbox"))).all() == []
    assert await hand.depth("notifications.email") == 0


async def test_opt_out_applies_to_scheduled_and_retried_deliveries(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, api: httpx.AsyncClient
) -> None:
    failed = await post(api, "email")
    async with engine.begin() as connection:
        await connection.execute(FAIL)
        await connection.execute(text("DELETE FROM outbox"))
    scheduled = await post(api, "email", send_at=(datetime.now(UTC) + timedelta(seconds=0.2)).isoformat())
    await store(api, "email", opted_out=True)
    retried = await api.post(f"/api/deliveries/{failed['deliveries'][0]['id']}/retry")
    assert (retried.json()["status"], retried.json()["reason"]) == ("pending", None)
    events = await hand.listen("notifications.events", "email.cancelled")
    async with running_gateway(rabbit, postgres):
        changed: set[str] = set()
        while len(changed) < 2:
            changes = StatusChanges.model_validate_json((await events.get()).body).changes
            changed |= {str(change.notification_id) for change in changes}
    assert changed == {failed["id"], scheduled["id"]}
    for each in (failed, scheduled):
        again = (await api.get(f"/api/notifications/{each['id']}")).json()
        assert delivery_summaries(again) == {"email": ("cancelled", "opted_out", None)}
    assert await hand.depth("notifications.email") == 0


async def test_channel_settings_are_separate_for_each_tenant(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:
        shop, bank = [
            {"Authorization": f"Bearer {(await keys.create(tenant, 'x', frozenset(Scope)))[1]}"}
            for tenant in ("shop", "bank")
        ]
        url = "/api/users/1/channels/email"
        await api.put(url, json={"recipient": "a@example.org"}, headers=shop)
        assert (await api.get(url, headers=bank)).status_code == 404
        assert (await api.delete(url, headers=bank)).status_code == 404
        body = {"user_id": 1, "message": "x", "type": "email"}
        for headers, recipient in ((shop, "a@example.org"), (bank, None)):
            created = (await api.post("/api/notifications", json=body, headers=headers)).json()
            assert delivery_summaries(created)["email"][2] == recipient
