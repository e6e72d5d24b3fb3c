"""Scheduled and expiring notifications."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import httpx
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, StatusChanges
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on, prepare_topology
from support.gateway import post, rows, soon
from support.services import running_gateway


@pytest.fixture
async def hand(rabbit: RabbitSettings) -> AsyncIterator[Hand]:
    bindings = [*topology.dead_letters(), *(topology.deliveries(channel) for channel in Channel)]
    await prepare_topology(rabbit, bindings, [topology.EVENTS])
    async with hand_on(rabbit) as hand:
        yield hand


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"send_at": soon(days=91)}, "send_at"),
        ({"send_at": "tomorrow"}, "send_at"),
        ({"send_at": "2030-01-01T00:00:00"}, "send_at"),
        ({"expires_at": soon(seconds=-1)}, "expires_at"),
        ({"send_at": soon(hours=2), "expires_at": soon(hours=1)}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
    ],
)
async def test_invalid_send_at_or_expires_at_is_rejected(
    api: httpx.AsyncClient, change: dict[str, str], field: str
) -> None:
    response = await api.post("/api/notifications", json={"user_id": 1, "message": "x", "type": "email", **change})
    assert response.status_code == 422
    assert field in response.json()["detail"]


async def test_scheduled_notification_waits_for_its_time(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    async with running_gateway(rabbit, postgres) as api:
        later = await post(api, send_at=soon(seconds=1.5))
        now = await post(api)
        first, second = [await hand.next_message("notifications.telegram") for _ in range(2)]
    arrived = datetime.now(UTC)
    assert DeliveryRequested.model_validate_json(first.body).notification_id == UUID(now["id"])
    assert DeliveryRequested.model_validate_json(second.body).notification_id == UUID(later["id"])
    assert arrived >= datetime.fromisoformat(later["send_at"])


async def test_delivery_that_expires_in_the_outbox_is_not_attempted(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, api: httpx.AsyncClient
) -> None:
    events = await hand.listen("notifications.events", "telegram.expired")
    late = await post(api, expires_at=soon(seconds=0.2))
    await asyncio.sleep(0.3)  # until it has expired
    async with running_gateway(rabbit, postgres):
        changes = StatusChanges.model_validate_json((await events.get()).body).changes
    assert [change.notification_id for change in changes] == [UUID(late["id"])]
    stored = (await api.get(f"/api/notifications/{late['id']}")).json()
    assert [(each["status"], each["attempts"]) for each in stored["deliveries"]] == [("expired", [])]
    assert await rows(engine, "SELECT 1 FROM outbox") == []
    assert await hand.depth("notifications.telegram") == 0


async def test_expiry_is_passed_on_to_the_sender(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    expires_at = soon(hours=1)
    async with running_gateway(rabbit, postgres) as api:
        await post(api, expires_at=expires_at)
        await post(api, expires_at=expires_at, send_at=soon(seconds=0.1))
        for _ in range(2):
            message = await hand.next_message("notifications.telegram")
            request = DeliveryRequested.model_validate_json(message.body)
            assert request.expires_at == datetime.fromisoformat(expires_at)


async def test_expired_delivery_whose_result_is_being_written_is_left_to_a_later_poll(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await post(api, expires_at=soon(hours=1))
    outbox = OutboxStore(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE notifications SET expires_at = now()"))
    async with engine.begin() as writing:
        await writing.execute(text("UPDATE deliveries SET status = 'sent'"))
        due = await outbox.take_due(10)
        assert (list(due.held), list(due.ended)) == ([], [])
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE outbox SET due_at = now()"))  # as if its backoff were over
    due = await outbox.take_due(10)
    assert (list(due.held), list(due.ended)) == ([], [])
    assert await rows(engine, "SELECT 1 FROM outbox") == []
    assert [row.status for row in await rows(engine, "SELECT status FROM deliveries")] == ["sent"]
