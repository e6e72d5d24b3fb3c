"""Cancelling a notification."""

import asyncio
from collections.abc import Mapping
from uuid import UUID

import httpx
from notify_common.contracts.messages import StatusChange
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import BOOTSTRAP_ID, ApiKeyStore
from notify_gateway.database import TenantShare
from notify_gateway.deliveries.retries import RETRY_ONE
from notify_gateway.http.principal import Scope
from notify_gateway.notifications.cancel import NotificationCanceller
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import blocked_or_done
from support.gateway import BODY, Json, bearer, bootstrap_key, post, rows, soon
from support.services import NOWHERE, running_gateway

SOME_ID = "01a2107e-2b08-7f6c-80e3-ee68c821945a"


async def post_with(api: httpx.AsyncClient, headers: Mapping[str, str], **change: object) -> Json:
    """Post `BODY`, overridden by `change`, with these headers, and return the created notification."""
    response = await api.post("/api/notifications", json={**BODY, **change}, headers=headers)
    assert response.status_code == 201, response.text
    created: Json = response.json()
    return created


async def test_cancelling_deletes_the_outbox_rows(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await post(api, type=None, channels=["telegram", "email"], send_at=soon(hours=1))
    response = await api.post(f"/api/notifications/{created['id']}/cancel")
    assert response.status_code == 200
    assert response.json()["status"] == "cancelled"
    assert await rows(engine, "SELECT 1 FROM outbox") == []
    again = await api.post(f"/api/notifications/{created['id']}/cancel")
    assert (again.status_code, again.json()) == (200, response.json())


async def test_delivery_leased_by_a_relay_is_not_cancelled(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await post(api, type=None, channels=["telegram", "email"])
    async with engine.begin() as connection:
        lease = "UPDATE outbox SET leased_until = now() + interval '1 minute' WHERE delivery_id = :id"
        leased = next(each["id"] for each in created["deliveries"] if each["channel"] == "email")
        await connection.execute(text(lease), {"id": UUID(leased)})
    response = await api.post(f"/api/notifications/{created['id']}/cancel")
    assert response.status_code == 409
    statuses = {each["channel"]: each["status"] for each in response.json()["deliveries"]}
    assert statuses == {"telegram": "cancelled", "email": "pending"}
    assert [str(row.delivery_id) for row in await rows(engine, "SELECT delivery_id FROM outbox")] == [leased]


async def test_delivery_is_never_both_cancelled_and_relayed(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await asyncio.gather(*(post(api) for _ in range(100)))
    outbox = OutboxStore(engine)
    leases = [asyncio.create_task(outbox.take_due(10)) for _ in range(10)]
    responses = await asyncio.gather(*(api.post(f"/api/notifications/{each['id']}/cancel") for each in created))
    leased = {held.request.notification_id for task in leases for held in (await task).held}
    cancelled = {
        UUID(each["id"]) for each, response in zip(created, responses, strict=True) if response.status_code == 200
    }
    assert not leased & cancelled
    assert len(leased) + len(cancelled) == len(created)


async def test_cancellation_that_waits_for_a_retry_leaves_the_new_round_in_the_outbox(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await post(api)
    delivery_id = UUID(created["deliveries"][0]["id"])
    async with engine.begin() as connection:
        # The relay died after the broker's confirm, so the outbox row is still there when the delivery fails.
        await connection.execute(text("UPDATE outbox SET leased_until = NULL"))
        await connection.execute(text("UPDATE deliveries SET status = 'failed', attempt = 1, failures = 1"))
    async with engine.begin() as retrying:
        await retrying.execute(RETRY_ONE, {"id": delivery_id, "tenant": None, "channel": None})
        canceller = NotificationCanceller(engine, TenantShare(1), lambda _: None)
        cancelling = asyncio.create_task(canceller.cancel("default", UUID(created["id"])))
        await blocked_or_done(engine, cancelling)
    await cancelling
    [delivery] = await rows(engine, "SELECT status, round FROM deliveries")
    assert (delivery.status, delivery.round) == ("pending", 2)
    assert [tuple(row) for row in await rows(engine, "SELECT delivery_id, round FROM outbox")] == [(delivery_id, 2)]


async def test_delivery_on_an_unknown_channel_is_cancelled_without_an_event(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await post(api, type=None, channels=["telegram", "email"])
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE outbox SET leased_until = NULL"))
        await connection.execute(text("UPDATE deliveries SET channel = 'pager' WHERE channel = 'email'"))
    events: list[StatusChange] = []
    await NotificationCanceller(engine, TenantShare(1), events.extend).cancel("default", UUID(created["id"]))
    assert [event.channel for event in events] == ["telegram"]
    assert {row.status for row in await rows(engine, "SELECT status FROM deliveries")} == {"cancelled"}
    assert await rows(engine, "SELECT 1 FROM outbox") == []


async def test_key_cancels_what_it_posted_and_nothing_else(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    sender, other = await bearer(engine, Scope.SEND), await bearer(engine, Scope.SEND, Scope.READ)
    administrator = await bearer(engine, Scope.ADMIN)
    created = await post_with(secured_api, sender, send_at=soon(hours=1))
    url = f"/api/notifications/{created['id']}/cancel"
    unknown = f"/api/notifications/{SOME_ID}/cancel"
    refused, missing = await secured_api.post(url, headers=other), await secured_api.post(unknown, headers=other)
    assert (refused.status_code, missing.status_code) == (404, 404)
    assert refused.text.replace(created["id"], SOME_ID) == missing.text
    cancelled = await secured_api.post(url, headers=sender)
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (await secured_api.post(url, headers=administrator)).status_code == 200


async def test_key_does_not_cancel_notifications_without_a_known_key(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """An older version, or a gateway with AUTH=off, stores no key."""
    sender, administrator = await bearer(engine, Scope.SEND), await bearer(engine, Scope.ADMIN)
    created = await post_with(secured_api, sender, send_at=soon(hours=1))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE notifications SET api_key_id = NULL"))
    url = f"/api/notifications/{created['id']}/cancel"
    assert (await secured_api.post(url, headers=sender)).status_code == 404
    assert (await secured_api.post(url, headers=administrator)).status_code == 200


async def test_replayed_request_does_not_make_another_key_the_owner(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first, second = await bearer(engine, Scope.SEND), await bearer(engine, Scope.SEND)
    key = {"Idempotency-Key": "once"}
    created = await post_with(secured_api, {**first, **key}, send_at=soon(hours=1))
    assert created == await post_with(secured_api, {**second, **key}, send_at=created["send_at"])
    url = f"/api/notifications/{created['id']}/cancel"
    assert (await secured_api.post(url, headers=second)).status_code == 404
    assert (await secured_api.post(url, headers=first)).status_code == 200


async def test_key_is_stored_with_what_it_posted_only_if_authentication_is_on(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    token = bootstrap_key(1)
    async with running_gateway(NOWHERE, postgres, relaying=False) as api:
        await post(api)
    await ApiKeyStore(engine).ensure_bootstrap_key(token)
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:
        await post_with(api, {"Authorization": f"Bearer {token}"})
    stored = await rows(engine, "SELECT api_key_id FROM notifications ORDER BY id")
    assert [row.api_key_id for row in stored] == [None, BOOTSTRAP_ID]
