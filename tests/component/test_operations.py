"""In time, too late, not any more, once more: schedules, expiry, cancellation, retries by an operator."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, StatusChange, StatusChanges
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.declaration import prepare_topology
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.http.authentication import Scope
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on
from support.processes import crash
from support.services import NOWHERE, eventually, running_gateway

FAIL = text("UPDATE deliveries SET status = 'failed', attempt = 3, failures = 3 WHERE id = ANY(CAST(:ids AS uuid[]))")
ADD_ATTEMPT = text("""
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, started_at, finished_at)
    VALUES (:id, 3, 1, 'failed', :error_class, now(), now())
""")


@pytest.fixture
async def hand(rabbit: RabbitSettings) -> AsyncIterator[Hand]:
    bindings = [*topology.dead_letters(), *(topology.deliveries(channel) for channel in Channel)]
    await prepare_topology(rabbit, bindings, [topology.EVENTS])
    async with hand_on(rabbit) as hand:
        yield hand


async def post(api: httpx.AsyncClient, **change: Any) -> dict[str, Any]:
    answer = await api.post("/api/notifications", json={"user_id": 1, "message": "x", "type": "telegram", **change})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


async def rows(engine: AsyncEngine, statement: str) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(text(statement)))


async def fail(engine: AsyncEngine, *notifications: dict[str, Any], error_class: str = "temporary") -> list[UUID]:
    """Let every delivery have failed after three attempts, and the outbox be empty."""
    ids = [UUID(delivery["id"]) for notification in notifications for delivery in notification["deliveries"]]
    async with engine.begin() as connection:
        await connection.execute(FAIL, {"ids": ids})
        await connection.execute(ADD_ATTEMPT, [{"id": id_, "error_class": error_class} for id_ in ids])
        await connection.execute(text("DELETE FROM outbox"))
    return ids


def soon(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


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
async def test_times_that_can_not_be_are_refused(api: httpx.AsyncClient, change: dict[str, str], field: str) -> None:
    answer = await api.post("/api/notifications", json={"user_id": 1, "message": "x", "type": "email", **change})
    assert answer.status_code == 422
    assert field in answer.json()["detail"]


async def test_a_scheduled_notification_waits_for_its_time(
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


async def test_what_is_too_late_for_the_relay_expires_without_an_attempt(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, api: httpx.AsyncClient
) -> None:
    events = await hand.listen("notifications.events", "telegram.expired")
    late = await post(api, expires_at=soon(seconds=0.2))
    await asyncio.sleep(0.3)  # until it is too late
    async with running_gateway(rabbit, postgres):
        changes = StatusChanges.model_validate_json((await events.get()).body).changes
    assert [change.notification_id for change in changes] == [UUID(late["id"])]
    told = (await api.get(f"/api/notifications/{late['id']}")).json()
    assert [(each["status"], each["attempts"]) for each in told["deliveries"]] == [("expired", [])]
    assert await rows(engine, "SELECT 1 FROM outbox") == []
    assert await hand.depth("notifications.telegram") == 0


async def test_a_request_carries_its_expiry_to_the_sender(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    expires_at = soon(hours=1)
    async with running_gateway(rabbit, postgres) as api:
        await post(api, expires_at=expires_at)
        await post(api, expires_at=expires_at, send_at=soon(seconds=0.1))
        for _ in range(2):
            message = await hand.next_message("notifications.telegram")
            told = DeliveryRequested.model_validate_json(message.body).expires_at
            assert told == datetime.fromisoformat(expires_at)


async def test_what_no_process_has_taken_is_cancelled_with_its_outbox_rows(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await post(api, type=None, channels=["telegram", "email"], send_at=soon(hours=1))
    answer = await api.post(f"/api/notifications/{created['id']}/cancel")
    assert answer.status_code == 200
    assert answer.json()["status"] == "cancelled"
    assert await rows(engine, "SELECT 1 FROM outbox") == []
    again = await api.post(f"/api/notifications/{created['id']}/cancel")
    assert (again.status_code, again.json()) == (200, answer.json())


async def test_what_is_under_way_is_not_cancelled_and_told(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await post(api, type=None, channels=["telegram", "email"])
    async with engine.begin() as connection:
        lease = "UPDATE outbox SET leased_until = now() + interval '1 minute' WHERE delivery_id = :id"
        taken = next(each["id"] for each in created["deliveries"] if each["channel"] == "email")
        await connection.execute(text(lease), {"id": UUID(taken)})
    answer = await api.post(f"/api/notifications/{created['id']}/cancel")
    assert answer.status_code == 409
    statuses = {each["channel"]: each["status"] for each in answer.json()["deliveries"]}
    assert statuses == {"telegram": "cancelled", "email": "pending"}
    assert [str(row.delivery_id) for row in await rows(engine, "SELECT delivery_id FROM outbox")] == [taken]


async def test_a_cancellation_and_a_relay_never_both_have_a_delivery(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await asyncio.gather(*(post(api) for _ in range(100)))
    outbox = OutboxStore(engine)
    taking = [asyncio.create_task(outbox.take_due(10)) for _ in range(10)]
    answers = await asyncio.gather(*(api.post(f"/api/notifications/{each['id']}/cancel") for each in created))
    taken = {request.notification_id for task in taking for request in (await task).requests}
    cancelled = {UUID(each["id"]) for each, answer in zip(created, answers, strict=True) if answer.status_code == 200}
    assert not taken & cancelled
    assert len(taken) + len(cancelled) == len(created)


async def test_there_is_nothing_to_cancel_or_retry_where_there_is_nothing(api: httpx.AsyncClient) -> None:
    assert (await api.post(f"/api/notifications/{uuid4()}/cancel")).status_code == 404
    assert (await api.post(f"/api/deliveries/{uuid4()}/retry")).status_code == 404
    assert (await api.get(f"/api/deliveries/retry/{uuid4()}")).status_code == 404


async def test_a_failed_delivery_is_put_back_as_a_new_round(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, api: httpx.AsyncClient
) -> None:
    [delivery_id] = await fail(engine, await post(api))
    answer = await api.post(f"/api/deliveries/{delivery_id}/retry")
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    async with running_gateway(rabbit, postgres):
        message = await hand.next_message("notifications.telegram")
    wanted = DeliveryRequested.model_validate_json(message.body)
    assert (wanted.delivery_id, wanted.round, wanted.attempt, wanted.failures) == (delivery_id, 2, 4, 0)
    assert (await api.post(f"/api/deliveries/{delivery_id}/retry")).status_code == 409
    assert len(await rows(engine, "SELECT 1 FROM attempts")) == 1


async def test_a_relay_that_is_still_at_an_earlier_round_does_not_delete_the_new_one(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await post(api)
    outbox = OutboxStore(engine)
    held = (await outbox.take_due(1)).requests
    ids = [UUID(each["id"]) for each in created["deliveries"]]
    async with engine.begin() as connection:
        await connection.execute(FAIL, {"ids": ids})
    assert (await api.post(f"/api/deliveries/{ids[0]}/retry")).status_code == 202
    for touch in (outbox.renew, outbox.release, outbox.delete):
        await touch(held)
    [row] = await rows(engine, "SELECT round, leased_until FROM outbox")
    assert (row.round, row.leased_until) == (2, None)


async def test_many_are_put_back_in_the_background_by_filter(
    api: httpx.AsyncClient, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    both = {"type": None, "channels": ["telegram", "email"]}
    created = await asyncio.gather(*(post(api, **both) for _ in range(30)))
    await fail(engine, *created[:20])
    permanent = await fail(engine, *created[20:], error_class="permanent")
    wanted = {"channel": "email", "error_class": "permanent"}
    counted = await api.post("/api/deliveries/retry", json={**wanted, "dry_run": True})
    assert (counted.status_code, counted.json()) == (200, {"count": len(permanent) // 2})
    assert (await api.post("/api/deliveries/retry", json={"dry_run": True})).json() == {"count": 60}
    started = await api.post("/api/deliveries/retry", json=wanted)
    assert (started.status_code, started.json()["finished_at"]) == (202, None)
    async with running_gateway(NOWHERE, postgres):

        async def finished() -> bool:
            job = (await api.get(f"/api/deliveries/retry/{started.json()['id']}")).json()
            return job["finished_at"] is not None and job["retried"] == 10

        await eventually(finished, "the job is finished")
    found = await rows(engine, "SELECT channel FROM deliveries WHERE status = 'pending' AND round = 2 AND failures = 0")
    assert [row.channel for row in found] == ["email"] * 10
    assert len(await rows(engine, "SELECT 1 FROM outbox WHERE round = 2")) == 10


async def test_a_job_goes_on_in_parts_whoever_does_them(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await asyncio.gather(*(post(api) for _ in range(35)))
    await fail(engine, *created)
    started = (await api.post("/api/deliveries/retry", json={})).json()
    chunks: list[int] = []
    retries = [DeliveryRetries(engine, lambda changes: chunks.append(len(changes)), chunk_size=10) for _ in range(2)]
    assert [await retries[number % 2].advance() for number in range(5)] == [True, True, True, True, False]
    assert chunks == [10, 10, 10, 5, 0]
    job = (await api.get(f"/api/deliveries/retry/{started['id']}")).json()
    assert (job["retried"], job["finished_at"] is not None) == (35, True)


async def test_a_retry_takes_the_time_range_that_was_asked_for(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await fail(engine, await post(api))
    for window, expected in (
        ({"created_before": soon(hours=-1)}, 0),
        ({"created_after": soon(hours=1)}, 0),
        ({"created_after": soon(hours=-1)}, 1),
        ({}, 1),
    ):
        answer = await api.post("/api/deliveries/retry", json={**window, "dry_run": True})
        assert answer.json() == {"count": expected}


async def test_a_retry_of_many_takes_those_of_its_tenant(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    own, other = [
        {"Authorization": f"Bearer {(await keys.create(tenant, '', frozenset(Scope)))[1]}"} for tenant in ("a", "b")
    ]
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:
        body = {"user_id": 1, "message": "x", "type": "email"}
        created = [
            (await api.post("/api/notifications", json=body, headers=headers)).json() for headers in (own, other)
        ]
        await fail(engine, *created)
        counted = await api.post("/api/deliveries/retry", json={"dry_run": True}, headers=own)
        started = await api.post("/api/deliveries/retry", json={}, headers=own)
        assert (counted.json(), started.status_code) == ({"count": 1}, 202)
        retried: list[StatusChange] = []
        await DeliveryRetries(engine, retried.extend).advance()
        assert [change.delivery_id for change in retried] == [UUID(created[0]["deliveries"][0]["id"])]
        path = f"/api/deliveries/retry/{started.json()['id']}"
        assert (await api.get(path, headers=own)).json()["retried"] == 1
        assert (await api.get(path, headers=other)).status_code == 404


async def test_a_process_that_is_killed_within_a_part_leaves_the_job_to_others(
    api: httpx.AsyncClient, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    await fail(engine, *(await asyncio.gather(*(post(api) for _ in range(35)))))
    started = (await api.post("/api/deliveries/retry", json={})).json()
    await crash("within a part of a retry", postgres)
    assert (await api.get(f"/api/deliveries/retry/{started['id']}")).json()["retried"] == 10
    retries = DeliveryRetries(engine, chunk_size=10)
    while await retries.advance():
        pass
    job = (await api.get(f"/api/deliveries/retry/{started['id']}")).json()
    assert (job["retried"], job["finished_at"] is not None) == (35, True)
    assert {row.round for row in await rows(engine, "SELECT round FROM deliveries")} == {2}
    assert len(await rows(engine, "SELECT 1 FROM outbox")) == 35
