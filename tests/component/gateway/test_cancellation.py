"""Cancelling a notification."""

import asyncio
from uuid import UUID

import httpx
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
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
