"""Operator retries of single deliveries, and bulk retries."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from notify_common.contracts.messages import DeliveryRequested, StatusChange
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings, create_engine
from notify_database.errors import StatementTimedOut
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.http.principal import Scope
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand
from support.database import blocked_or_done, slow_down_outbox
from support.gateway import BODY, Json, bearer, post, rows, soon
from support.processes import crash
from support.services import NOWHERE, eventually, running_gateway

FAIL = text("UPDATE deliveries SET status = 'failed', attempt = 3, failures = 3 WHERE id = ANY(CAST(:ids AS uuid[]))")
LOCK = text("SELECT FROM deliveries WHERE id = :id FOR UPDATE")
ADD_ATTEMPT = text("""
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, started_at, finished_at)
    VALUES (:id, 3, 1, 'failed', :error_class, now(), now())
""")
ADD_FINISHED = text("""
    INSERT INTO retry_jobs (id, tenant, last_id, end_id, retried, created_at, finished_at, advanced_at)
    SELECT gen_random_uuid(), :tenant, gen_random_uuid(), gen_random_uuid(), age, now(), now(),
           now() - age * interval '1 s'
    FROM generate_series(1, CAST(:count AS int)) AS age
""")


async def fail(engine: AsyncEngine, *notifications: Json, error_class: str = "temporary") -> list[UUID]:
    """Mark the deliveries as failed after three attempts, empty the outbox, and return the delivery IDs."""
    ids = [UUID(delivery["id"]) for notification in notifications for delivery in notification["deliveries"]]
    async with engine.begin() as connection:
        await connection.execute(FAIL, {"ids": ids})
        await connection.execute(ADD_ATTEMPT, [{"id": id_, "error_class": error_class} for id_ in ids])
        await connection.execute(text("DELETE FROM outbox"))
    return ids


async def test_cancelling_or_retrying_an_unknown_id_returns_404(api: httpx.AsyncClient) -> None:
    assert (await api.post(f"/api/notifications/{uuid4()}/cancel")).status_code == 404
    assert (await api.post(f"/api/deliveries/{uuid4()}/retry")).status_code == 404
    assert (await api.get(f"/api/deliveries/retry/{uuid4()}")).status_code == 404


async def test_retry_of_a_failed_delivery_starts_a_new_round(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, api: httpx.AsyncClient
) -> None:
    [delivery_id] = await fail(engine, await post(api))
    response = await api.post(f"/api/deliveries/{delivery_id}/retry")
    assert (response.status_code, response.json()["status"]) == (202, "pending")
    async with running_gateway(rabbit, postgres):
        message = await hand.next_message("notifications.telegram")
    requested = DeliveryRequested.model_validate_json(message.body)
    assert (requested.delivery_id, requested.round, requested.attempt, requested.failures) == (delivery_id, 2, 4, 0)
    assert (await api.post(f"/api/deliveries/{delivery_id}/retry")).status_code == 409
    assert len(await rows(engine, "SELECT 1 FROM attempts")) == 1


async def test_relay_that_holds_an_earlier_round_does_not_change_the_new_row(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await post(api)
    outbox = OutboxStore(engine)
    held = (await outbox.take_due(1)).held
    ids = [UUID(each["id"]) for each in created["deliveries"]]
    async with engine.begin() as connection:
        await connection.execute(FAIL, {"ids": ids})
    assert (await api.post(f"/api/deliveries/{ids[0]}/retry")).status_code == 202
    for touch in (outbox.renew, outbox.release, outbox.delete):
        await touch(held)
    [row] = await rows(engine, "SELECT round, leased_until FROM outbox")
    assert (row.round, row.leased_until) == (2, None)


async def test_filtered_bulk_retry_runs_in_the_background(
    api: httpx.AsyncClient, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    both = {"type": None, "channels": ["telegram", "email"]}
    created = await asyncio.gather(*(post(api, **both) for _ in range(30)))
    await fail(engine, *created[:20])
    permanent = await fail(engine, *created[20:], error_class="permanent")
    filters = {"channel": "email", "error_class": "permanent"}
    counted = await api.post("/api/deliveries/retry", json={**filters, "dry_run": True})
    assert (counted.status_code, counted.json()) == (200, {"count": len(permanent) // 2})
    assert (await api.post("/api/deliveries/retry", json={"dry_run": True})).json() == {"count": 60}
    started = await api.post("/api/deliveries/retry", json=filters)
    assert (started.status_code, started.json()["finished_at"]) == (202, None)
    async with running_gateway(NOWHERE, postgres):

        async def finished() -> bool:
            job = (await api.get(f"/api/deliveries/retry/{started.json()['id']}")).json()
            return job["finished_at"] is not None and job["retried"] == 10

        await eventually(finished, "the bulk retry has finished")
    found = await rows(engine, "SELECT channel FROM deliveries WHERE status = 'pending' AND round = 2 AND failures = 0")
    assert [row.channel for row in found] == ["email"] * 10
    assert len(await rows(engine, "SELECT 1 FROM outbox WHERE round = 2")) == 10


async def test_processes_share_a_bulk_retry_chunk_by_chunk(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await asyncio.gather(*(post(api) for _ in range(35)))
    await fail(engine, *created)
    started = (await api.post("/api/deliveries/retry", json={})).json()
    chunks: list[int] = []
    retries = [DeliveryRetries(engine, lambda changes: chunks.append(len(changes)), chunk_size=10) for _ in range(2)]
    assert [await retries[number % 2].advance() for number in range(5)] == [True, True, True, True, False]
    assert chunks == [10, 10, 10, 5]
    job = (await api.get(f"/api/deliveries/retry/{started['id']}")).json()
    assert (job["retried"], job["finished_at"] is not None) == (35, True)


async def test_retry_leaves_a_delivery_on_an_unknown_channel_alone(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    known, unknown = await fail(engine, await post(api), await post(api))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET channel = 'pager' WHERE id = :id"), {"id": unknown})
    retried: list[StatusChange] = []
    retries = DeliveryRetries(engine, retried.extend)
    assert not await retries.retry("default", unknown)
    assert (await api.post("/api/deliveries/retry", json={"dry_run": True})).json() == {"count": 1}
    assert (await api.post("/api/deliveries/retry", json={})).status_code == 202
    assert await retries.advance()
    assert [change.delivery_id for change in retried] == [known]
    found = await rows(engine, "SELECT id, status, round FROM deliveries")
    assert {tuple(row) for row in found} == {(known, "pending", 2), (unknown, "failed", 1)}


async def test_bulk_retry_is_limited_to_its_time_range(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await fail(engine, await post(api))
    for window, expected in (
        ({"created_before": soon(hours=-1)}, 0),
        ({"created_after": soon(hours=1)}, 0),
        ({"created_after": soon(hours=-1)}, 1),
        ({}, 1),
    ):
        response = await api.post("/api/deliveries/retry", json={**window, "dry_run": True})
        assert response.json() == {"count": expected}


async def test_bulk_retry_is_limited_to_its_tenant(postgres: PostgresSettings, engine: AsyncEngine) -> None:
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


async def test_tenants_take_turns_however_large_or_many_their_bulk_retries_are(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    small, large = [await bearer(engine, *Scope, tenant=tenant) for tenant in ("small", "large")]
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:

        async def post_failed(headers: dict[str, str], count: int) -> None:
            responses = await asyncio.gather(
                *(api.post("/api/notifications", json=BODY, headers=headers) for _ in range(count))
            )
            await fail(engine, *(response.json() for response in responses))

        async def start(headers: dict[str, str], **window: str) -> str:
            response = await api.post("/api/deliveries/retry", json=window, headers=headers)
            assert response.status_code == 202, response.text
            return f"/api/deliveries/retry/{response.json()['id']}"

        await post_failed(small, 2)
        between = soon()
        await post_failed(large, 30)
        retries = DeliveryRetries(engine, chunk_size=5)
        large_job = await start(large, created_after=between)
        assert await retries.advance()
        small_jobs = [await start(small, created_before=between) for _ in range(3)]
        progress = []
        for _ in range(6):
            assert await retries.advance()
            finished = [(await api.get(job, headers=small)).json()["finished_at"] for job in small_jobs]
            retried = (await api.get(large_job, headers=large)).json()["retried"]
            progress.append((sum(time is not None for time in finished), retried))
    assert progress == [(1, 5), (1, 10), (2, 10), (2, 15), (3, 15), (3, 20)]


async def test_tenant_pauses_for_each_delivery_that_its_bulk_retries_have_restarted(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    large, small = [await bearer(engine, *Scope, tenant=tenant) for tenant in ("large", "small")]
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:

        async def post_failed(headers: dict[str, str], count: int) -> None:
            posts = (api.post("/api/notifications", json=BODY, headers=headers) for _ in range(count))
            await fail(engine, *(response.json() for response in await asyncio.gather(*posts)))

        await post_failed(large, 12)
        between = soon()
        await post_failed(small, 1)
        before, after = {"created_before": between}, {"created_after": between}
        for headers, window in ((large, before), (large, before), (small, after)):
            assert (await api.post("/api/deliveries/retry", json=window, headers=headers)).status_code == 202
    chunks: list[int] = []
    retries = DeliveryRetries(
        engine, lambda changes: chunks.append(len(changes)), chunk_size=5, pace=timedelta(hours=1)
    )
    # The other job of the same tenant pauses, too, but the other tenant does not.
    assert [await retries.advance() for _ in range(3)] == [True, True, False]
    assert sorted(chunks) == [1, 5]

    async def pass_time(interval: str) -> None:
        async with engine.begin() as connection:
            statement = "UPDATE retry_jobs SET advanced_at = advanced_at - CAST(CAST(:interval AS text) AS interval)"
            await connection.execute(text(statement), {"interval": interval})

    await pass_time("4.9 hours")
    assert not await retries.advance()
    await pass_time("0.1 hours")
    assert await retries.advance()


async def start_bulk_retries(api: httpx.AsyncClient, engine: AsyncEngine) -> UUID:
    """Start two bulk retries of one failed delivery each, and return the delivery of the first one."""
    [first] = await fail(engine, await post(api))
    between = soon()
    await fail(engine, await post(api))
    for window in ({"created_before": between}, {"created_after": between}):
        assert (await api.post("/api/deliveries/retry", json=window)).status_code == 202
    return first


async def test_bulk_retries_of_a_tenant_pause_while_another_gateway_processes_one(
    api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each gateway would restart as many deliveries in that time as are allowed for all of them."""
    monkeypatch.setattr("notify_gateway.deliveries.retries.LIMIT_LOCK_WAIT", text("SET LOCAL lock_timeout = '1min'"))
    first = await start_bulk_retries(api, engine)
    here, elsewhere = (DeliveryRetries(engine, pace=timedelta(seconds=1)) for _ in range(2))
    async with engine.begin() as connection:
        await connection.execute(LOCK, {"id": first})
        in_progress = asyncio.create_task(here.advance())
        await blocked_or_done(engine, in_progress)
        assert not await elsewhere.advance()
    assert await in_progress


async def test_bulk_retry_that_fails_does_not_make_others_of_its_tenant_pause(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first = await start_bulk_retries(api, engine)
    retries = DeliveryRetries(engine, pace=timedelta(seconds=1))
    async with engine.begin() as connection:
        await connection.execute(LOCK, {"id": first})
        with pytest.raises(StatementTimedOut):
            await retries.advance()
        assert await retries.advance()


async def test_bulk_retries_go_on_after_the_clock_of_postgresql_was_fast(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    retries = DeliveryRetries(engine, pace=timedelta(milliseconds=1))
    await fail(engine, await post(api))
    await api.post("/api/deliveries/retry", json={})
    assert await retries.advance()
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE retry_jobs SET advanced_at = advanced_at + interval '1 day'"))
    [delivery_id] = await fail(engine, await post(api))
    await api.post("/api/deliveries/retry", json={})
    assert await retries.advance()
    assert [row.delivery_id for row in await rows(engine, "SELECT delivery_id FROM outbox")] == [delivery_id]


async def test_tenant_has_its_turns_although_the_clock_of_postgresql_was_fast_in_an_earlier_one(
    engine: AsyncEngine,
) -> None:
    retries = DeliveryRetries(engine, pace=timedelta(milliseconds=1))
    async with engine.begin() as connection:
        for tenant in ("early", "other"):
            await connection.execute(ADD_FINISHED, {"tenant": tenant, "count": 4})
        await connection.execute(
            text("UPDATE retry_jobs SET advanced_at = now() + interval '1 day' WHERE tenant = 'early'")
        )
        await connection.execute(text("UPDATE retry_jobs SET finished_at = NULL WHERE retried < 4"))
    for _ in range(2):
        assert await retries.advance()
    finished = await rows(engine, "SELECT tenant FROM retry_jobs WHERE finished_at IS NOT NULL AND retried < 4")
    assert {row.tenant for row in finished} == {"early", "other"}


async def test_tenant_gets_at_most_100_unfinished_bulk_retries(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    ours, theirs = [await bearer(engine, Scope.ADMIN, tenant=tenant) for tenant in ("ours", "theirs")]
    started = [await secured_api.post("/api/deliveries/retry", json={}, headers=ours) for _ in range(101)]
    assert [each.status_code for each in started] == [202] * 100 + [429]
    assert started[-1].json()["detail"] == "This tenant has 100 unfinished retry jobs; wait until one has finished."
    assert started[-1].headers["Retry-After"] == "1"
    assert (await secured_api.post("/api/deliveries/retry", json={}, headers=theirs)).status_code == 202
    assert await DeliveryRetries(engine).advance()
    assert (await secured_api.post("/api/deliveries/retry", json={}, headers=ours)).status_code == 202


async def test_tenant_that_starts_bulk_retries_again_and_again_does_not_fill_the_database(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        for tenant, count in (("busy", 1_007), ("other", 5)):
            await connection.execute(ADD_FINISHED, {"tenant": tenant, "count": count})
    for tenant in ("busy", "other"):
        headers = await bearer(engine, Scope.ADMIN, tenant=tenant)
        assert (await secured_api.post("/v1/retries", json={}, headers=headers)).status_code == 202
    kept = await rows(
        engine,
        "SELECT tenant, count(*), count(finished_at), max(retried) FROM retry_jobs GROUP BY tenant ORDER BY tenant",
    )
    assert kept == [("busy", 1_001, 1_000, 1_000), ("other", 6, 5, 5)]


async def test_bulk_retry_whose_chunk_takes_too_long_goes_on_in_smaller_ones(
    api: httpx.AsyncClient, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    await fail(engine, *(await asyncio.gather(*(post(api) for _ in range(40)))))
    started = (await api.post("/api/deliveries/retry", json={})).json()
    await slow_down_outbox(engine)
    impatient = create_engine(postgres, pool_size=1, statement_timeout=0.4)
    retries = DeliveryRetries(impatient, chunk_size=40)
    for _ in range(25):
        with suppress(StatementTimedOut):
            await retries.advance()
    await impatient.dispose()
    job = (await api.get(f"/api/deliveries/retry/{started['id']}")).json()
    assert (job["retried"], job["finished_at"] is not None) == (40, True)


async def test_bulk_retry_continues_after_its_process_is_killed(
    api: httpx.AsyncClient, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    await fail(engine, *(await asyncio.gather(*(post(api) for _ in range(35)))))
    started = (await api.post("/api/deliveries/retry", json={})).json()
    await crash("during a chunk of a bulk retry", postgres)
    assert (await api.get(f"/api/deliveries/retry/{started['id']}")).json()["retried"] == 10
    retries = DeliveryRetries(engine, chunk_size=10)
    while await retries.advance():
        pass
    job = (await api.get(f"/api/deliveries/retry/{started['id']}")).json()
    assert (job["retried"], job["finished_at"] is not None) == (35, True)
    assert {row.round for row in await rows(engine, "SELECT round FROM deliveries")} == {2}
    assert len(await rows(engine, "SELECT 1 FROM outbox")) == 35
