"""Deliveries with very many attempts, whose history must not take up the gateway's memory."""

from uuid import UUID

import httpx
from notify_common.contracts.messages import StatusChange
from notify_gateway.deliveries.queries import LISTED_ATTEMPTS
from notify_gateway.deliveries.retries import MAX_ROUNDS, DeliveryRetries
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import Json, post, rows

MANY = 10 * LISTED_ATTEMPTS
ADD_ATTEMPTS = text("""
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, started_at, finished_at)
    SELECT :id, number, 1, 'failed', 'permanent', now(), now()
    FROM generate_series(CAST(:first AS int), :last) AS number
""")
FAIL = text("UPDATE deliveries SET status = 'failed', round = :round WHERE id = :id")


async def add_attempts(engine: AsyncEngine, delivery_id: str, *, first: int = 1, last: int) -> None:
    async with engine.begin() as connection:
        await connection.execute(ADD_ATTEMPTS, {"id": UUID(delivery_id), "first": first, "last": last})


async def fail(engine: AsyncEngine, delivery_id: str, *, in_round: int) -> None:
    async with engine.begin() as connection:
        await connection.execute(FAIL, {"id": UUID(delivery_id), "round": in_round})


def numbers(delivery: Json) -> list[int]:
    return [attempt["number"] for attempt in delivery["attempts"]]


async def test_only_the_last_attempts_are_read(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await post(api, type=None, channels=["email", "telegram"])
    email, telegram = (delivery["id"] for delivery in created["deliveries"])
    await add_attempts(engine, email, last=MANY)
    await add_attempts(engine, telegram, last=LISTED_ATTEMPTS)
    read = await api.get(f"/api/notifications/{created['id']}")
    cancelled = await api.post(f"/api/notifications/{created['id']}/cancel")
    for response in (read, cancelled):
        assert response.status_code == 200
        many, few = response.json()["deliveries"]
        assert numbers(many) == list(range(MANY - LISTED_ATTEMPTS + 1, MANY + 1))
        assert many["earlier_attempts"] == MANY - LISTED_ATTEMPTS
        assert numbers(few) == list(range(1, LISTED_ATTEMPTS + 1))
        assert few["earlier_attempts"] == 0


async def test_attempt_whose_result_has_not_arrived_does_not_count_as_left_out(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await post(api)
    [delivery] = created["deliveries"]
    await add_attempts(engine, delivery["id"], first=2, last=3)
    [delivery] = (await api.get(f"/api/notifications/{created['id']}")).json()["deliveries"]
    assert (numbers(delivery), delivery["earlier_attempts"]) == ([2, 3], 0)


async def test_delivery_in_its_last_round_is_not_retried(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    last_but_one, last = [(await post(api))["deliveries"][0]["id"] for _ in range(2)]
    await fail(engine, last_but_one, in_round=MAX_ROUNDS - 1)
    await fail(engine, last, in_round=MAX_ROUNDS)
    assert (await api.post(f"/api/deliveries/{last_but_one}/retry")).status_code == 202
    refused = await api.post(f"/api/deliveries/{last}/retry")
    assert refused.status_code == 409
    assert refused.json()["detail"] == "This delivery has been retried 999 times, which is the maximum."
    found = await rows(engine, "SELECT id, round FROM deliveries WHERE status = 'failed'")
    assert [(str(row.id), row.round) for row in found] == [(last, MAX_ROUNDS)]


async def test_bulk_retry_leaves_deliveries_in_their_last_round_alone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    other, last = [(await post(api))["deliveries"][0]["id"] for _ in range(2)]
    await fail(engine, other, in_round=1)
    await fail(engine, last, in_round=MAX_ROUNDS)
    assert (await api.post("/api/deliveries/retry", json={"dry_run": True})).json() == {"count": 1}
    assert (await api.post("/api/deliveries/retry", json={})).status_code == 202
    retried: list[StatusChange] = []
    assert await DeliveryRetries(engine, retried.extend).advance()
    assert [str(change.delivery_id) for change in retried] == [other]
