"""Maintenance that fails or takes long does not hold up the other maintenance."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.maintenance import PartitionMaintenance, run_maintenance
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import all_channels_idle, rows
from support.services import TIMEOUT, eventually
from typing_extensions import override

ADD_JOB = """
    INSERT INTO retry_jobs (id, tenant, last_id, end_id, retried, created_at)
    VALUES (gen_random_uuid(), 'default', '00000000-0000-0000-0000-000000000000',
            'ffffffff-ffff-ffff-ffff-ffffffffffff', 0, now())
"""
REJECT_JOBS = "ALTER TABLE retry_jobs ADD CONSTRAINT no_progress CHECK (advanced_at IS NULL)"
ADD_EXPIRED_KEY = """
    INSERT INTO idempotency_keys (tenant, key, body_hash, answer, created_at)
    VALUES ('default', 'old', '', '', now() - interval '1 year')
"""


class StuckPartitions(PartitionMaintenance):
    """Partition maintenance that never returns, like one that drops a very large partition."""

    @override
    async def advance(self) -> None:
        await asyncio.Event().wait()


class FailingPartitions(PartitionMaintenance):
    @override
    async def advance(self) -> None:
        raise ZeroDivisionError


async def prepare(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


@asynccontextmanager
async def maintaining(engine: AsyncEngine, partitions: PartitionMaintenance) -> AsyncIterator[asyncio.Task[None]]:
    """Maintain until the context ends."""
    stranded = StrandedDeliveries(engine, lambda _: None, lambda _: None, all_channels_idle, silence=timedelta(hours=1))
    task = asyncio.create_task(run_maintenance(engine, DeliveryRetries(engine), stranded, partitions, asyncio.Event()))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def is_clean(engine: AsyncEngine) -> bool:
    return await rows(engine, "SELECT 1 FROM idempotency_keys") == []


async def test_rejected_retry_job_does_not_stop_the_other_maintenance(engine: AsyncEngine) -> None:
    await prepare(engine, ADD_JOB, REJECT_JOBS, ADD_EXPIRED_KEY)
    async with maintaining(engine, PartitionMaintenance(engine, None)) as task:
        await eventually(lambda: is_clean(engine), "the expired key is deleted")
        assert not task.done()


async def test_long_partition_maintenance_does_not_delay_retry_jobs(engine: AsyncEngine) -> None:
    await prepare(engine, ADD_EXPIRED_KEY)
    async with maintaining(engine, StuckPartitions(engine, None)):
        await eventually(lambda: is_clean(engine), "the first round is over")
        await prepare(engine, ADD_JOB)

        async def is_finished() -> bool:
            return bool(await rows(engine, "SELECT 1 FROM retry_jobs WHERE finished_at IS NOT NULL"))

        await eventually(is_finished, "the retry job is finished")


async def test_unexpected_error_ends_all_maintenance(engine: AsyncEngine) -> None:
    async with maintaining(engine, FailingPartitions(engine, None)) as task:
        await asyncio.wait({task}, timeout=TIMEOUT)
        with pytest.raises(ExceptionGroup) as caught:
            task.result()
    assert caught.group_contains(ZeroDivisionError)
