"""Cancelling a notification."""

import asyncio
from uuid import UUID

import httpx
from notify_common.contracts.messages import StatusChange
from notify_gateway.deliveries.retries import RETRY_ONE
from notify_gateway.notifications.cancel import NotificationCanceller
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import blocked_or_done
from support.gateway import post, rows, soon


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
        await retrying.execute(RETRY_ONE, {"id": delivery_id, "tenant": None})
        cancelling = asyncio.create_task(NotificationCanceller(engine, lambda _: None).cancel(UUID(created["id"])))
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
    await NotificationCanceller(engine, events.extend).cancel(UUID(created["id"]))
    assert [event.channel for event in events] == ["telegram"]
    assert {row.status for row in await rows(engine, "SELECT status FROM deliveries")} == {"cancelled"}
    assert await rows(engine, "SELECT 1 FROM outbox") == []
