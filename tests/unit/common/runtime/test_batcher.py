import asyncio
from collections.abc import Sequence

import pytest
from notify_common.errors import Overloaded
from notify_common.runtime.batcher import Batcher, Failed


class Rejection(Exception):
    pass


class Store:
    """A store that commits only while `open` is set, and rejects batches that contain a `rejected` item."""

    def __init__(self, rejected: frozenset[int] = frozenset()) -> None:
        self.batches: list[list[int]] = []
        self.committed: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.began = asyncio.Event()
        self._rejected = rejected

    async def flush(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.began.set()
        await self.open.wait()
        if self._rejected.intersection(items):
            raise Rejection
        self.committed.extend(items)
        return list(items)


async def test_lone_item_is_flushed_immediately() -> None:
    store = Store()
    await Batcher(store.flush, max_batch=10).submit(1)
    assert store.batches == [[1]]


async def test_items_that_arrive_during_a_commit_share_the_next_batch() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.flush, max_batch=10)
    async with asyncio.TaskGroup() as callers:
        callers.create_task(batcher.submit(0))
        await store.began.wait()
        for item in (1, 2, 3):
            callers.create_task(batcher.submit(item))
        await asyncio.sleep(0)
        store.open.set()
    assert store.batches == [[0], [1, 2, 3]]


async def test_item_that_nobody_waits_for_is_flushed_with_the_others() -> None:
    store = Store()
    batcher = Batcher(store.flush, max_batch=10)
    batcher.submit_soon(1)
    await batcher.submit(2)
    assert store.batches == [[1, 2]]


async def test_batch_size_is_bounded() -> None:
    store = Store()
    batcher = Batcher(store.flush, max_batch=2)
    await asyncio.gather(*(batcher.submit(item) for item in range(5)))
    assert [len(batch) for batch in store.batches] == [2, 2, 1]
    assert store.committed == [0, 1, 2, 3, 4]


async def test_submit_returns_only_after_the_commit() -> None:
    store = Store()
    store.open.clear()
    caller = asyncio.create_task(Batcher(store.flush, max_batch=2).submit(1))
    await store.began.wait()
    assert not caller.done()
    store.open.set()
    await caller
    assert store.committed == [1]


async def test_rejected_item_fails_only_its_own_caller() -> None:
    store = Store(rejected=frozenset({2}))
    batcher = Batcher(store.flush, max_batch=10, rejections=(Rejection,))
    outcomes = await asyncio.gather(*(batcher.submit(item) for item in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, int, Rejection, int]
    assert store.committed == [0, 1, 3]


async def test_rejected_items_are_isolated_by_bisection() -> None:
    store = Store(rejected=frozenset({37, 90}))
    outcomes = await Batcher(store.flush, max_batch=1, rejections=(Rejection,)).submit_all(range(100))
    assert [item for item, outcome in enumerate(outcomes) if isinstance(outcome, Failed)] == [37, 90]
    assert store.committed == [item for item in range(100) if item not in {37, 90}]
    assert len(store.batches) < 40


async def test_submissions_with_rejected_items_fail_as_a_whole() -> None:
    store = Store(rejected=frozenset({5}))
    batcher = Batcher(store.flush, max_batch=10, rejections=(Rejection,), whole_submissions=True)
    submissions = (batcher.submit_all(range(first, first + 4)) for first in (0, 4, 8))
    outcomes = await asyncio.gather(*submissions)
    assert [[isinstance(outcome, Failed) for outcome in each] for each in outcomes] == [
        [False] * 4, [True] * 4, [False] * 4,
    ]  # fmt: skip
    assert store.committed == [0, 1, 2, 3, 8, 9, 10, 11]


async def test_each_caller_gets_its_own_result() -> None:
    batcher = Batcher(Store().flush, max_batch=10)
    assert await asyncio.gather(*(batcher.submit(item) for item in range(5))) == [0, 1, 2, 3, 4]


async def test_other_errors_fail_the_whole_batch_but_not_the_next_one() -> None:
    store = Store(rejected=frozenset({1}))
    batcher = Batcher(store.flush, max_batch=2)
    outcomes = await asyncio.gather(*(batcher.submit(item) for item in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Rejection, Rejection, int, int]


async def test_number_of_waiting_items_is_bounded() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.flush, max_batch=1, max_waiting=2)
    in_flight = asyncio.create_task(batcher.submit(0))
    await store.began.wait()
    waiting = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await batcher.submit(3)
    store.open.set()
    await asyncio.gather(in_flight, *waiting)
    assert store.committed == [0, 1, 2]


async def test_bytes_per_batch_are_bounded_but_a_large_item_is_flushed_alone() -> None:
    store = Store()
    batcher = Batcher(store.flush, max_batch=10, max_batch_bytes=100)
    await asyncio.gather(*(batcher.submit(size, size=size) for size in (40, 60, 1, 500, 50)))
    assert store.batches == [[40, 60], [1], [500], [50]]


async def test_waiting_bytes_are_bounded_and_freed_by_the_commit() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.flush, max_batch=1, max_waiting_bytes=100)
    in_flight = asyncio.create_task(batcher.submit(0, size=100))
    await store.began.wait()
    waiting = [asyncio.create_task(batcher.submit(item, size=50)) for item in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await batcher.submit(3, size=1)
    store.open.set()
    await asyncio.gather(in_flight, *waiting)
    await batcher.submit(4, size=100)
    assert store.committed == [0, 1, 2, 4]


async def test_cancelled_caller_withdraws_its_item_before_the_commit() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.flush, max_batch=10)
    first, second = (asyncio.create_task(batcher.submit(item)) for item in (1, 2))
    third = asyncio.create_task(batcher.submit(3))
    await store.began.wait()
    late = asyncio.create_task(batcher.submit(4))
    await asyncio.sleep(0)
    late.cancel()
    store.open.set()
    await asyncio.gather(first, second, third)
    await batcher.drained()
    assert store.batches == [[1, 2, 3]]


async def test_item_of_a_cancelled_caller_is_dropped_at_once() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.flush, max_batch=1, max_waiting=2, max_waiting_bytes=100)
    in_flight = asyncio.create_task(batcher.submit(0))
    await store.began.wait()
    # The flush takes longer than its callers wait, as it does during an outage of the database.
    for item in range(1, 10):
        waiting = [asyncio.create_task(batcher.submit(item, size=50)) for _ in range(2)]
        await asyncio.sleep(0)
        for caller in waiting:
            caller.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    last = asyncio.create_task(batcher.submit(10, size=100))
    await asyncio.sleep(0)
    store.open.set()
    await asyncio.gather(in_flight, last)
    assert store.committed == [0, 10]


async def test_drained_waits_for_pending_items() -> None:
    store = Store()
    batcher = Batcher(store.flush, max_batch=1)
    callers = [asyncio.create_task(batcher.submit(item)) for item in range(3)]
    await asyncio.sleep(0)
    await batcher.drained()
    assert store.committed == [0, 1, 2]
    await asyncio.gather(*callers)


async def test_exception_can_be_returned_as_a_result() -> None:
    async def flush(items: Sequence[int]) -> list[Exception | None]:
        return [Rejection() if item else None for item in items]

    batcher = Batcher(flush, max_batch=10)
    assert await batcher.submit(0) is None
    assert isinstance(await batcher.submit(1), Rejection)


async def test_tenant_with_most_items_makes_room_in_a_fair_batcher() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.flush, max_batch=10, max_waiting=2, fair=True)
    in_flight = asyncio.create_task(batcher.submit(0, tenant="many"))
    await store.began.wait()
    first, second = (asyncio.create_task(batcher.submit(item, tenant="many")) for item in (1, 2))
    await asyncio.sleep(0)
    assert (batcher.has_room(0, "many"), batcher.has_room(0, "few")) == (False, True)
    few = asyncio.create_task(batcher.submit(3, tenant="few"))
    with pytest.raises(Overloaded):
        await second
    store.open.set()
    await asyncio.gather(in_flight, first, few)
    assert store.committed == [0, 1, 3]
