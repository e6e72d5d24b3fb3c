"""Batch items that arrive concurrently: items that arrive while one batch is being flushed go into the next.

A lone item never waits for a batch to fill. Under load, the whole batch shares the cost of a flush (a transaction, a
publisher confirm). With a `flush_interval`, flushes start at least that far apart, so that an item that arrives soon
after a flush waits a little for others to join it.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from notify_common.errors import Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failed:
    """The outcome of an item whose flush raised `error`. It is wrapped, because a result may be an exception, too."""

    error: Exception


@dataclass(slots=True, eq=False)  # compared by identity, so that a withdrawn one is found quickly
class Submission(Generic[Item, Result]):
    """Items that wait to be flushed together, and how many bytes they take."""

    items: Sequence[Item]
    flushed: "asyncio.Future[list[Result | Failed]]"
    size: int


class Batcher(Generic[Item, Result]):
    """Flushes one batch at a time, of at most `max_batch` submissions; `flush` returns one result per item.

    The bounds in bytes apply to the sizes that callers pass. A single submission may exceed `max_batch_bytes`.

    If `flush` raises one of `rejections`, it must not have written any of the batch. The batch is then bisected until
    the rejected items are isolated, so that each fails only its own caller. Any other error goes to every caller.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        max_batch_bytes: float = math.inf,
        max_waiting: float = math.inf,
        max_waiting_bytes: float = math.inf,
        flush_interval: float = 0.0,
        rejections: tuple[type[Exception], ...] = (),
        observe: Callable[[int], object] | None = None,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._max_batch_bytes = max_batch_bytes
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._flush_interval = flush_interval  # seconds
        self._next_flush_at = 0.0
        self._rejections = rejections
        self._observe = observe  # the number of submissions in each batch
        self._waiting: deque[Submission[Item, Result]] = deque()
        self._waiting_bytes = 0
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item, *, size: int = 0) -> Result:
        """Flush `item` of `size` bytes and return its result; raise the error of its flush, or `Overloaded`."""
        submission = self._enqueue((item,), size)
        try:
            (outcome,) = await submission.flushed
        except asyncio.CancelledError:
            self._withdraw(submission)
            raise
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome

    def submit_soon(self, item: Item) -> None:
        """Flush `item` without waiting for it, for callers that need neither its result nor its error."""
        self._enqueue((item,), 0)

    async def submit_all(self, items: Sequence[Item]) -> list[Result | Failed]:
        """Flush `items` in one batch; return a result or `Failed` for each item."""
        if not items:
            return []
        submission = self._enqueue(items, 0)
        try:
            return await submission.flushed
        except asyncio.CancelledError:
            self._withdraw(submission)
            raise

    def _enqueue(self, items: Sequence[Item], size: int) -> Submission[Item, Result]:
        if len(self._waiting) >= self._max_waiting or self._waiting_bytes + size > self._max_waiting_bytes:
            raise Overloaded
        flushed: asyncio.Future[list[Result | Failed]] = asyncio.get_running_loop().create_future()
        submission = Submission(items, flushed, size)
        self._waiting.append(submission)
        self._waiting_bytes += size
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain())
        return submission

    def _withdraw(self, submission: Submission[Item, Result]) -> None:
        # A flush may take hours during an outage. Meanwhile the same item may be submitted again and again.
        with suppress(ValueError):  # raised if its batch has begun
            self._waiting.remove(submission)
            self._waiting_bytes -= submission.size

    async def drained(self) -> None:
        """Wait until no item is waiting or being flushed."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait({self._worker})

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if (wait := self._next_flush_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._next_flush_at = loop.time() + self._flush_interval
            if batch := self._take_batch():
                if self._observe is not None:
                    self._observe(len(batch))
                await self._flush_batch(batch)

    def _take_batch(self) -> list[Submission[Item, Result]]:
        batch: list[Submission[Item, Result]] = []
        room = self._max_batch_bytes
        while self._waiting and len(batch) < self._max_batch and (not batch or self._waiting[0].size <= room):
            submission = self._waiting.popleft()
            self._waiting_bytes -= submission.size
            # The items of callers that were cancelled before the flush began are not flushed.
            if not submission.flushed.done():
                batch.append(submission)
                room -= submission.size
        return batch

    async def _flush_batch(self, batch: Sequence[Submission[Item, Result]]) -> None:
        try:
            outcomes = await self._flush_or_bisect([item for submission in batch for item in submission.items])
        except BaseException:
            for submission in (*batch, *self._waiting):
                submission.flushed.cancel()
            self._waiting.clear()
            self._waiting_bytes = 0
            raise
        first = 0
        for submission in batch:
            end = first + len(submission.items)
            if not submission.flushed.done():
                submission.flushed.set_result(outcomes[first:end])
            first = end

    async def _flush_or_bisect(self, items: Sequence[Item]) -> list[Result | Failed]:
        try:
            return list(await self._flush(items))
        except Exception as error:  # noqa: BLE001 - not handled here: it is passed on to the callers
            if len(items) <= 1 or not isinstance(error, self._rejections):
                return [Failed(error) for _ in items]
        middle = len(items) // 2
        return [*await self._flush_or_bisect(items[:middle]), *await self._flush_or_bisect(items[middle:])]
