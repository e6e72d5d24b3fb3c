import asyncio
from collections.abc import Sequence

import pytest
from notify_common.group_commit import GroupCommit, WaitingRoomFull


class Refusal(Exception):
    pass


class Store:
    """Commits when it is let, refuses what it is told to refuse."""

    def __init__(self, refused: frozenset[int] = frozenset()) -> None:
        self.groups: list[list[int]] = []
        self.committed: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.began = asyncio.Event()
        self._refused = refused

    async def commit(self, items: Sequence[int]) -> None:
        self.groups.append(list(items))
        self.began.set()
        await self.open.wait()
        if self._refused.intersection(items):
            raise Refusal
        self.committed.extend(items)


async def test_a_lone_item_does_not_wait_for_a_group() -> None:
    store = Store()
    await GroupCommit(store.commit, max_group=10).submit(1)
    assert store.groups == [[1]]


async def test_what_arrives_during_a_commit_goes_together_in_the_next() -> None:
    store = Store()
    store.open.clear()
    group_commit = GroupCommit(store.commit, max_group=10)
    async with asyncio.TaskGroup() as callers:
        callers.create_task(group_commit.submit(0))
        await store.began.wait()
        for item in (1, 2, 3):
            callers.create_task(group_commit.submit(item))
        await asyncio.sleep(0)
        store.open.set()
    assert store.groups == [[0], [1, 2, 3]]


async def test_a_group_is_bounded() -> None:
    store = Store()
    group_commit = GroupCommit(store.commit, max_group=2)
    await asyncio.gather(*(group_commit.submit(item) for item in range(5)))
    assert [len(group) for group in store.groups] == [2, 2, 1]
    assert store.committed == [0, 1, 2, 3, 4]


async def test_submit_returns_only_after_the_commit() -> None:
    store = Store()
    store.open.clear()
    caller = asyncio.create_task(GroupCommit(store.commit, max_group=2).submit(1))
    await store.began.wait()
    assert not caller.done()
    store.open.set()
    await caller
    assert store.committed == [1]


async def test_a_refused_item_fails_only_its_own_caller() -> None:
    store = Store(refused=frozenset({2}))
    group_commit = GroupCommit(store.commit, max_group=10, refusals=(Refusal,))
    outcomes = await asyncio.gather(*(group_commit.submit(item) for item in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), Refusal, type(None)]
    assert store.committed == [0, 1, 3]


async def test_any_other_error_goes_to_every_caller_and_the_next_group_is_tried() -> None:
    store = Store(refused=frozenset({1}))
    group_commit = GroupCommit(store.commit, max_group=2)
    outcomes = await asyncio.gather(*(group_commit.submit(item) for item in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Refusal, Refusal, type(None), type(None)]


async def test_the_waiting_room_is_bounded() -> None:
    store = Store()
    store.open.clear()
    group_commit = GroupCommit(store.commit, max_group=1, max_waiting=2)
    under_way = asyncio.create_task(group_commit.submit(0))
    await store.began.wait()
    waiting = [asyncio.create_task(group_commit.submit(item)) for item in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(WaitingRoomFull):
        await group_commit.submit(3)
    store.open.set()
    await asyncio.gather(under_way, *waiting)
    assert store.committed == [0, 1, 2]


async def test_a_caller_that_goes_away_takes_its_item_along_if_its_commit_has_not_begun() -> None:
    store = Store()
    store.open.clear()
    group_commit = GroupCommit(store.commit, max_group=10)
    first, second = (asyncio.create_task(group_commit.submit(item)) for item in (1, 2))
    third = asyncio.create_task(group_commit.submit(3))
    await store.began.wait()
    late = asyncio.create_task(group_commit.submit(4))
    await asyncio.sleep(0)
    late.cancel()
    store.open.set()
    await asyncio.gather(first, second, third)
    await group_commit.drained()
    assert store.groups == [[1, 2, 3]]


async def test_drained_waits_for_what_is_under_way() -> None:
    store = Store()
    group_commit = GroupCommit(store.commit, max_group=1)
    callers = [asyncio.create_task(group_commit.submit(item)) for item in range(3)]
    await asyncio.sleep(0)
    await group_commit.drained()
    assert store.committed == [0, 1, 2]
    await asyncio.gather(*callers)
