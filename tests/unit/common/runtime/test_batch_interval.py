"""The interval between batches follows the load. The tests run on a virtual clock."""

import asyncio
from collections.abc import Sequence
from statistics import mean

import pytest
from notify_common.runtime.batch_interval import LONGEST, interval_after, no_interval
from notify_common.runtime.batcher import Batcher
from support.virtual_clock import run_virtually

FLUSH = 0.003  # seconds, as a commit takes


def run_load(rate: float, seconds: float = 2.0, flush: float = FLUSH, *, max_batch: int = 500) -> tuple[float, float]:
    """Submit items at an even rate; return the mean seconds until their flush ends, and the mean size of batches."""
    batches, latencies = list[int](), list[float]()

    async def write(items: Sequence[None]) -> Sequence[None]:
        batches.append(len(items))
        await asyncio.sleep(flush)
        return items

    async def main() -> None:
        now = asyncio.get_running_loop().time
        batcher = Batcher(write, max_batch=max_batch, interval_after=interval_after)

        async def submit() -> None:
            began = now()
            await batcher.submit(None)
            latencies.append(now() - began)

        async with asyncio.TaskGroup() as callers:
            for _ in range(round(rate * seconds)):
                callers.create_task(submit())
                await asyncio.sleep(1 / rate)

    run_virtually(main())
    return mean(latencies), mean(batches)


def test_items_that_arrive_rarely_wait_for_no_others() -> None:
    latency, batch = run_load(rate=200)
    assert latency == pytest.approx(FLUSH)
    assert batch == 1


def test_batches_grow_with_the_load() -> None:
    rates = (200, 1_000, 1_500, 2_000, 4_000, 8_000)
    batches = [run_load(rate)[1] for rate in rates]
    assert batches == sorted(batches)
    assert batches[-1] > 4_000 * LONGEST


def test_interval_is_bounded() -> None:
    latency, _ = run_load(rate=8_000)
    assert latency < LONGEST + FLUSH
    assert interval_after(10_000) == LONGEST


def test_full_batch_waits_for_no_others() -> None:
    latency, batch = run_load(rate=4_000, max_batch=20)
    assert latency < LONGEST + FLUSH
    assert batch <= 20


def test_interval_shrinks_again_after_a_burst() -> None:
    sizes = list[float]()
    size = 500.0
    while size > 1:
        sizes.append(size)
        assert len(sizes) < 20
        size = interval_after(round(size)) * 200  # the items that arrive in that time at 200 per second


def test_without_an_interval_batches_follow_one_another_at_once() -> None:
    assert [no_interval(items) for items in (1, 1_000)] == [0, 0]
