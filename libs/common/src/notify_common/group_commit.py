"""Group commit: what arrives while one group is under way goes together in the next.

A lone item never waits for a group to fill, and under load the cost of a commit (a transaction, a publisher
confirm) is shared by all of its group. Where an `interval` is given, groups begin at least so far apart: what follows
closely on another waits a little, for company.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class WaitingRoomFull(Exception):
    """Too many items wait for their commit already."""


class GroupCommit(Generic[Item]):
    """Runs `commit` on groups of at most `max_group` items, one group at a time.

    When `commit` raises one of `refusals`, no item of the group may have been committed; each is then tried
    alone, so that a refused item fails only its own caller. Any other error goes to every caller of the group.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[None]],
        *,
        max_group: int,
        max_waiting: int | None = None,
        interval: float = 0.0,
        refusals: tuple[type[Exception], ...] = (),
        observe: Callable[[int], object] | None = None,
    ) -> None:
        self._commit = commit
        self._max_group = max_group
        self._max_waiting = max_waiting
        self._interval = interval  # seconds
        self._next_group_at = 0.0
        self._refusals = refusals
        self._observe = observe  # the size of each group
        self._waiting: deque[tuple[Item, asyncio.Future[None]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> None:
        """Return once `item` is committed; raise what its commit raised, or `WaitingRoomFull`."""
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise WaitingRoomFull
        committed = asyncio.get_running_loop().create_future()
        self._waiting.append((item, committed))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain())
        await committed

    async def drained(self) -> None:
        """Return when nothing is waiting or under way."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait({self._worker})

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if (wait := self._next_group_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._next_group_at = loop.time() + self._interval
            size = min(len(self._waiting), self._max_group)
            group = [self._waiting.popleft() for _ in range(size)]
            # A caller that has gone away before its commit began takes its item with it.
            group = [(item, committed) for item, committed in group if not committed.done()]
            if group:
                if self._observe is not None:
                    self._observe(len(group))
                await self._commit_group(group)

    async def _commit_group(self, group: Sequence[tuple[Item, asyncio.Future[None]]]) -> None:
        try:
            await self._commit([item for item, _ in group])
        except self._refusals as refusal:
            if len(group) == 1:
                _fail(group, refusal)
            else:
                for member in group:
                    await self._commit_group([member])
        except Exception as error:  # noqa: BLE001 - not handled here: it is passed on to every caller
            _fail(group, error)
        except BaseException:
            for _, committed in (*group, *self._waiting):
                committed.cancel()
            self._waiting.clear()
            raise
        else:
            for _, committed in group:
                if not committed.done():
                    committed.set_result(None)


def _fail(group: Sequence[tuple[Item, asyncio.Future[None]]], error: Exception) -> None:
    for _, committed in group:
        if not committed.done():
            committed.set_exception(error)
