"""Maintenance that fails or takes long does not hold up the other maintenance."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import pairwise, repeat

import pytest
from notify_common.runtime.clock import utc_now
from notify_database.partitions import AHEAD
from notify_gateway.api_keys.store import BOOTSTRAP_ID, delete_former_keys
from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.maintenance import INTERVAL, DatabaseWatch, run_maintenance
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import slow_down_outbox
from support.failing_rows import fail_on
from support.gateway import all_channels_idle, rows
from support.outbox import add_row
from support.plans import recorded
from support.services import TIMEOUT, eventually
from typing_extensions import override

ADD_JOB = """
    INSERT INTO retry_jobs (id, tenant, last_id, end_id, retried, created_at)
    VALUES (gen_random_uuid(), 'default', '00000000-0000-0000-0000-000000000000',
            'ffffffff-ffff-ffff-ffff-ffffffffffff', 0, now())
"""
REJECT_JOBS = "ALTER TABLE retry_jobs ADD CONSTRAINT no_progress CHECK (tenant <> 'default' OR finished_at IS NULL)"
ADD_LATER_JOB = ADD_JOB.replace("'default'", "'other'").replace("now()", "now() + interval '1 minute'")
ADD_EXPIRED_KEY = """
    INSERT INTO idempotency_keys (tenant, key, body_hash, answer, created_at)
    VALUES ('default', 'old', '', '', now() - interval '1 year')
"""


ADD_FINISHED_JOBS = """
    INSERT INTO retry_jobs (id, tenant, last_id, end_id, retried, created_at, finished_at)
    SELECT gen_random_uuid(), 'default', gen_random_uuid(), gen_random_uuid(), days, now(),
           now() - days * interval '1 day'
    FROM unnest(ARRAY[29, 31]) AS days
"""
ADD_KEYS = f"""
    INSERT INTO api_keys (id, tenant, name, hash, scopes, created_at, expires_at, revoked_at)
    VALUES ('{BOOTSTRAP_ID}', 'default', 'bootstrap', '1', '{{read}}', now(), NULL, now() - interval '91 days'),
           (gen_random_uuid(), 'default', 'revoked lately', '2', '{{read}}', now(), NULL, now() - interval '89 days'),
           (gen_random_uuid(), 'default', 'revoked long ago', '3', '{{read}}', now(), NULL, now() - interval '91 days'),
           (gen_random_uuid(), 'default', 'expired lately', '4', '{{read}}', now(), now() - interval '89 days', NULL),
           (gen_random_uuid(), 'default', 'expired long ago', '5', '{{read}}', now(), now() - interval '91 days', NULL),
           (gen_random_uuid(), 'default', 'valid', '6', '{{read}}', now(), now() + interval '1 day', NULL)
"""  # noqa: S608 - a constant
# A later key has a greater id.
ADD_FORMER_KEYS = """
    INSERT INTO api_keys (id, tenant, name, hash, scopes, created_at, expires_at)
    SELECT CAST(lpad(to_hex(number), 32, '0') AS uuid), '{tenant}', number, CAST('{tenant}' || number AS bytea),
           '{{read}}', now(), now() - interval '1 second'
    FROM generate_series({first}, {last}) AS number
"""


class StuckWatch(DatabaseWatch):
    """A watch that never returns, like one whose statement waits for a lock."""

    @override
    async def advance(self) -> None:
        await asyncio.Event().wait()


class FailingWatch(DatabaseWatch):
    @override
    async def advance(self) -> None:
        raise ZeroDivisionError


async def prepare(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


def ignore(_: float) -> None:
    pass


class TimedRetries(DeliveryRetries):
    """Retries that record when each chunk began and ended."""

    def __init__(self, engine: AsyncEngine, *, chunk_size: int) -> None:
        super().__init__(engine, chunk_size=chunk_size)
        self.chunks: list[tuple[float, float]] = []

    @override
    async def advance(self) -> bool:
        begin = time.monotonic()
        more = await super().advance()
        self.chunks.append((begin, time.monotonic()))
        return more


@asynccontextmanager
async def maintaining(
    engine: AsyncEngine, watch: DatabaseWatch, retries: DeliveryRetries | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """Maintain until the context ends."""
    retries = retries or DeliveryRetries(engine)
    stranded = StrandedDeliveries(engine, lambda _: None, lambda _: None, all_channels_idle, silence=timedelta(hours=1))
    task = asyncio.create_task(run_maintenance(engine, retries, stranded, watch, asyncio.Event()))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def is_clean(engine: AsyncEngine) -> bool:
    return await rows(engine, "SELECT 1 FROM idempotency_keys") == []


@pytest.mark.parametrize("code", ["22023", "P0001", "XX001"])
async def test_rejected_retry_job_does_not_stop_the_other_maintenance(engine: AsyncEngine, code: str) -> None:
    await prepare(engine, ADD_JOB, ADD_EXPIRED_KEY)
    await fail_on(engine, "UPDATE", "retry_jobs", code=code)
    async with maintaining(engine, DatabaseWatch(engine, ignore, ignore)) as task:
        await eventually(lambda: is_clean(engine), "the expired key is deleted")
        assert not task.done()


async def test_cleanup_that_fails_waits_as_long_as_one_that_has_nothing_more_to_do(engine: AsyncEngine) -> None:
    """A statement that times out takes half a minute, during which no retry job advances."""
    await prepare(engine, ADD_EXPIRED_KEY)
    await fail_on(engine, "DELETE", "idempotency_keys", code="P0001")

    async def three_rounds_have_begun() -> bool:
        return sum("UPDATE retry_jobs" in statement for statement, _ in statements) >= 3

    with recorded(engine) as statements:
        async with maintaining(engine, DatabaseWatch(engine, ignore, ignore)):
            await eventually(three_rounds_have_begun, "three rounds of maintenance have begun")
    assert sum("DELETE FROM idempotency_keys" in statement for statement, _ in statements) == 1


async def test_old_rows_are_deleted(engine: AsyncEngine) -> None:
    await prepare(engine, ADD_FINISHED_JOBS, ADD_KEYS)

    async def old_rows_are_gone() -> bool:
        jobs = await rows(engine, "SELECT retried FROM retry_jobs")
        keys = await rows(engine, "SELECT name FROM api_keys")
        return {job.retried for job in jobs} == {29} and {key.name for key in keys} == {
            # If it were forgotten that the bootstrap key was revoked, the next start would make it valid again.
            "bootstrap",
            "revoked lately",
            "expired lately",
            "valid",
        }

    async with maintaining(engine, DatabaseWatch(engine, ignore, ignore)):
        await eventually(old_rows_are_gone, "finished retry jobs and old keys are deleted")


async def test_keys_that_expired_by_only_one_of_two_clocks_are_kept(engine: AsyncEngine) -> None:
    """Otherwise, a clock that is wrong would delete valid keys."""
    await prepare(engine, ADD_KEYS)
    for error, expired in ((timedelta(days=-10), True), (timedelta(days=10), False)):
        now = utc_now() + error
        assert not await delete_former_keys(engine, partial(next, repeat(now)))
        names = {key.name for key in await rows(engine, "SELECT name FROM api_keys")}
        assert {"bootstrap", "revoked lately", "expired lately", "valid"} <= names
        assert ("expired long ago" in names) == expired


async def test_tenant_that_creates_keys_again_and_again_does_not_fill_the_database(engine: AsyncEngine) -> None:
    await prepare(
        engine,
        ADD_FORMER_KEYS.format(tenant="busy", first=2, last=10_004),
        ADD_FORMER_KEYS.format(tenant="other", first=20_001, last=20_005),
    )
    assert not await delete_former_keys(engine)
    oldest = await rows(engine, "SELECT tenant, count(*), min(CAST(name AS int)) FROM api_keys GROUP BY 1 ORDER BY 1")
    assert oldest == [("busy", 10_000, 5), ("other", 5, 20_001)]


async def job_is_finished(engine: AsyncEngine, tenant: str) -> bool:
    finished = await rows(engine, "SELECT tenant FROM retry_jobs WHERE finished_at IS NOT NULL")
    return (tenant,) in finished


async def other_job_is_finished(engine: AsyncEngine) -> None:
    await eventually(lambda: job_is_finished(engine, "other"), "the later job is finished")


async def test_rejected_retry_job_does_not_stop_later_ones(engine: AsyncEngine) -> None:
    await prepare(engine, ADD_JOB, REJECT_JOBS, ADD_LATER_JOB)
    async with maintaining(engine, DatabaseWatch(engine, ignore, ignore)):
        await other_job_is_finished(engine)
    assert await rows(engine, "SELECT 1 FROM retry_jobs WHERE tenant = 'default' AND finished_at IS NULL")


async def test_maintenance_that_has_more_to_do_pauses_for_as_long_as_it_has_worked(engine: AsyncEngine) -> None:
    for _ in range(20):
        await add_row(engine)
    await prepare(engine, "DELETE FROM outbox", "UPDATE deliveries SET status = 'failed'", ADD_JOB)
    await slow_down_outbox(engine)
    retries = TimedRetries(engine, chunk_size=5)
    async with maintaining(engine, DatabaseWatch(engine, ignore, ignore), retries):
        await eventually(lambda: job_is_finished(engine, "default"), "the job is finished")
    pauses = [(ended - began, later - ended) for (began, ended), (later, _) in pairwise(retries.chunks[:4])]
    assert all(pause > 0.9 * min(work, INTERVAL) for work, pause in pauses), pauses


async def test_retry_job_that_waits_for_a_lock_stops_no_other_maintenance(engine: AsyncEngine) -> None:
    locked = await add_row(engine)
    await prepare(
        engine,
        "DELETE FROM outbox",
        "UPDATE deliveries SET status = 'failed'",
        ADD_JOB,
        ADD_LATER_JOB,
        ADD_EXPIRED_KEY,
    )
    async with engine.connect() as operator:
        await operator.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await operator.execute(text("SELECT FROM deliveries WHERE id = :id FOR UPDATE"), {"id": locked})
        async with maintaining(engine, DatabaseWatch(engine, ignore, ignore)):
            await eventually(lambda: is_clean(engine), "the expired key is deleted")
            await other_job_is_finished(engine)
            await operator.rollback()
            await eventually(lambda: is_pending(engine), "the delivery is retried")


async def is_pending(engine: AsyncEngine) -> bool:
    return await rows(engine, "SELECT status FROM deliveries") == [("pending",)]


async def test_stuck_watch_does_not_delay_retry_jobs(engine: AsyncEngine) -> None:
    await prepare(engine, ADD_EXPIRED_KEY)
    async with maintaining(engine, StuckWatch(engine, ignore, ignore)):
        await eventually(lambda: is_clean(engine), "the first round is over")
        await prepare(engine, ADD_JOB)
        await eventually(lambda: job_is_finished(engine, "default"), "the retry job is finished")


async def test_unexpected_error_ends_all_maintenance(engine: AsyncEngine) -> None:
    async with maintaining(engine, FailingWatch(engine, ignore, ignore)) as task:
        await asyncio.wait({task}, timeout=TIMEOUT)
        with pytest.raises(ExceptionGroup) as caught:
            task.result()
    assert caught.group_contains(ZeroDivisionError)


async def test_watch_reports_a_wrong_clock_and_missing_partitions(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    offsets: list[float] = []
    ahead: list[float] = []
    shift = timedelta(days=20)
    await DatabaseWatch(engine, offsets.append, ahead.append).advance()
    assert caplog.text == ""
    await prepare(engine, "DROP TABLE attempts")
    await prepare(engine, "CREATE TABLE attempts (delivery_id uuid) PARTITION BY RANGE (delivery_id)")
    await DatabaseWatch(engine, offsets.append, ahead.append, clock=lambda: utc_now() + shift).advance()
    assert offsets == [pytest.approx(0, abs=10), pytest.approx(shift.total_seconds(), abs=10)]
    assert ahead == [AHEAD.total_seconds(), 0]
    assert "a clock is wrong" in caplog.text
    assert "is their maintenance running?" in caplog.text
