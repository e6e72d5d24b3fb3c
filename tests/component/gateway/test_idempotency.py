"""Repeated requests with an idempotency key."""

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.legacy.schemas import LegacyNotificationRequest
from notify_gateway.notifications.idempotency import Claim, RecordedResponse, body_hash, clean_up, find_recorded
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.plans import executed_nodes, recorded, rows_read
from support.services import NOWHERE, running_gateway

BODY = {"user_id": 123, "message": "Your code: 11111", "channels": ["telegram", "email"], "metadata": {"a": "1"}}
REPEATS = 50


async def post(api: httpx.AsyncClient, key: str, content: Any = None, **change: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    content = json.dumps({**BODY, **change}) if content is None else content
    return await api.post("/api/notifications", content=content, headers=headers)


async def count(engine: AsyncEngine, table: str = "notifications") -> int:
    async with engine.connect() as connection:
        counted: int = (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()  # noqa: S608 - constants
    return counted


async def age_keys(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE idempotency_keys SET created_at = created_at - interval '25 hours'"))


async def test_repeated_request_gets_the_first_response_and_stores_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first, again = await post(api, "order-5512"), await post(api, "order-5512")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await count(engine), await count(engine, "outbox")) == (1, 2)
    assert (await api.get(f"/api/notifications/{first.json()['id']}")).json() == first.json()


async def test_replayed_response_ignores_later_changes(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    first = await post(api, "k")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET status = 'sent'"))
    assert (await post(api, "k")).content == first.content


async def test_same_key_with_another_body_is_rejected(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    assert (await post(api, "k")).status_code == 201
    other = await post(api, "k", message="another")
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]
    assert await count(engine) == 1


async def test_recorded_response_is_read_only_for_the_same_body(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Otherwise, short requests with the keys of long ones could fill the gateway's memory."""
    responses = {key: (await post(api, key)).text for key in ("a", "b")}
    same, other = body_hash(LegacyNotificationRequest.model_validate(BODY)), bytes(32)
    claims = [Claim(("default", "a"), other), Claim(("default", "b"), same), Claim(("default", "c"), same)]
    async with engine.connect() as connection:
        recorded = await find_recorded(connection, claims)
    assert recorded == {
        claims[0]: RecordedResponse(same, None),
        claims[1]: RecordedResponse(same, responses["b"]),
    }


async def test_different_bodies_with_one_key_in_one_batch_get_their_own_outcomes(api: httpx.AsyncClient) -> None:
    first = await post(api, "k")
    messages = ["another", BODY["message"], "another", BODY["message"]]
    outcomes = await asyncio.gather(*(post(api, "k", message=message) for message in messages))
    assert [outcome.status_code for outcome in outcomes] == [422, 201, 422, 201]
    assert outcomes[1].content == outcomes[3].content == first.content


async def test_whitespace_and_field_order_do_not_change_the_request(api: httpx.AsyncClient) -> None:
    first = await post(api, "k")
    again = await post(api, "k", json.dumps(dict(reversed(BODY.items())), indent=4))
    assert (again.status_code, again.content) == (201, first.content)


async def test_invalid_request_does_not_use_up_its_key(api: httpx.AsyncClient) -> None:
    assert (await post(api, "k", message=" ")).status_code == 422
    assert (await post(api, "k")).status_code == 201


@pytest.mark.parametrize("key", [b"", b"x" * 256, "ключ".encode()])
async def test_key_must_be_1_to_255_ascii_characters(api: httpx.AsyncClient, key: bytes) -> None:
    response = await api.post("/api/notifications", json=BODY, headers={b"Idempotency-Key": key})
    assert response.status_code == 422
    assert "idempotency-key" in response.json()["detail"].lower()


async def test_request_rejected_by_the_database_does_not_use_up_its_key(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE notifications ADD CONSTRAINT no CHECK (user_id <> 13)"))
    outcomes = await asyncio.gather(post(api, "a", user_id=13), post(api, "b"), post(api, "a", user_id=14))
    assert [outcome.status_code for outcome in outcomes[1:]] in ([201, 201], [201, 422])
    assert outcomes[0].status_code == 422
    assert (await post(api, "a", user_id=14)).status_code == 201


async def test_concurrent_repeats_at_two_gateways_create_one_notification(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(running_gateway(NOWHERE, postgres, relaying=False)) for _ in range(2)
        ]
        responses = await asyncio.gather(*(post(gateways[number % 2], "once") for number in range(REPEATS)))
    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert sum("Idempotent-Replayed" not in response.headers for response in responses) == 1
    assert (await count(engine), await count(engine, "deliveries"), await count(engine, "outbox")) == (1, 2, 2)


async def test_gateways_do_not_deadlock_on_the_same_keys_in_different_order(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    keys = [f"key-{number}" for number in range(200)]
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(running_gateway(NOWHERE, postgres, relaying=False)) for _ in range(2)
        ]
        orders = (keys, keys[::-1])
        responses = await asyncio.gather(
            *(post(gateway, key) for gateway, order in zip(gateways, orders, strict=True) for key in order)
        )
    assert {response.status_code for response in responses} == {201}
    assert await count(engine) == len(keys)


async def test_response_is_replayed_after_the_notification_has_expired(api: httpx.AsyncClient) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=0.5)
    first = await post(api, "k", expires_at=expires_at.isoformat())
    await asyncio.sleep(0.6)  # until it has expired
    assert (await post(api, "k", expires_at=expires_at.isoformat())).content == first.content
    assert (await post(api, "other", expires_at=expires_at.isoformat())).status_code == 422


async def test_key_can_be_reused_after_24_hours(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    first = await post(api, "k")
    await age_keys(engine)
    second = await post(api, "k", message="another")
    assert second.status_code == 201
    assert second.json()["id"] != first.json()["id"]
    assert (await post(api, "k", message="another")).content == second.content


async def test_cleanup_deletes_only_old_keys(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await asyncio.gather(*(post(api, f"old-{number}") for number in range(10)))
    await age_keys(engine)
    await post(api, "young")
    assert await clean_up(engine) is False
    assert await count(engine, "idempotency_keys") == 1


async def test_cleanup_reads_only_what_it_deletes(engine: AsyncEngine) -> None:
    """The statistics say that many keys have expired, as they do if they are an hour old."""
    fill = text("""
        INSERT INTO idempotency_keys (tenant, key, body_hash, answer, created_at)
        SELECT 'default', number, '', repeat('x', 200), now() - number * interval '26 hours' / :keys
        FROM generate_series(1, :keys) AS number
    """)
    async with engine.begin() as connection:
        await connection.execute(fill, {"keys": 20_000})
        await connection.execute(text("ANALYZE idempotency_keys"))
    with recorded(engine) as statements:
        while await clean_up(engine):
            pass
    nodes = await executed_nodes(engine, statements[0])
    assert rows_read(nodes, "idempotency_keys") < 100  # those that have expired meanwhile
