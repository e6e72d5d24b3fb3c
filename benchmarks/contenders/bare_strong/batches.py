"""Work on many items at a time: whatever has arrived while the last batch was being worked on."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import asyncpg

LONGEST = 500  # items

Item = TypeVar("Item")


class Batches(Generic[Item]):
    """Collects items and passes them to `work` in batches, with one batch in progress at a time."""

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[None]]) -> None:
        self._work = work
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> None:
        """Return once the batch with this item has been worked on; raise the error of its batch."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:LONGEST], self._waiting[LONGEST:]
            try:
                await self._work([item for item, _ in batch])
            except (asyncpg.PostgresError, OSError) as error:
                for _, done in batch:
                    done.set_exception(error)
            else:
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)
        self._task = None
