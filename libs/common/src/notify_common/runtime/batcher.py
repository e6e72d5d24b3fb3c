"""Batch items that arrive concurrently: items that arrive while one batch is being flushed go into the next.

A lone item never waits for a batch to fill. Under load, the whole batch shares the cost of a flush (a transaction, a
publisher confirm). With an `interval_after`, an item that arrives soon after a large batch waits a little for others to
join it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from notify_common.errors import Overloaded
from notify_common.runtime.batch_interval import no_interval
from notify_common.runtime.waiting_queue import FairQueue, FifoQueue, WaitingQueue

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failed:
    """The outcome of an item whose flush raised `error`. It is wrapped, because a result may be an exception, too."""

    error: Exception


@dataclass(slots=True, eq=False)  # compared by identity, so that a withdrawn one is found quickly
class Submission(Generic[Item, Result]):
    """Items of a tenant that wait to be flushed together, and how many bytes they take."""

    items: Sequence[Item]
    flushed: "asyncio.Future[list[Result | Failed]]"
    size: int
    tenant: str


class Batcher(Generic[Item, Result]):
    """Flushes one batch at a time, of at most `max_batch` submissions; `flush` returns one result per item.

    A batch that is not full starts at least `interval_after(items)` seconds after the one before it, which had `items`.
    The bounds in bytes apply to the sizes that callers pass. A single submission may exceed `max_batch_bytes`. If the
    batcher is `fair`, tenants share its batches and its room, and otherwise all submissions count as those of one.

    If `flush` raises one of `rejections`, it must not have written any of the batch, unless a second write changes
    nothing. The batch is then bisected until the rejected items are isolated, so that each fails only its own caller.
    Any other error goes to every caller. With `whole_submissions`, the submissions that contain rejected items are
    isolated, and all their items fail.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        max_batch_bytes: float = math.inf,
        max_waiting: float = math.inf,
        max_waiting_bytes: float = math.inf,
        fair: bool = False,
        interval_after: Callable[[int], float] = no_interval,
        rejections: tuple[type[Exception], ...] = (),
        whole_submissions: bool = False,
        observe: Callable[[int], object] | None = None,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._max_batch_bytes = max_batch_bytes
        self._interval_after = interval_after
        self._next_flush_at = 0.0
        self._rejections = rejections
        self._whole_submissions = whole_submissions
        self._observe = observe  # the number of submissions in each batch
        queue_class = FairQueue if fair else FifoQueue
        self._waiting: WaitingQueue[Submission[Item, Result]] = queue_class(max_waiting, max_waiting_bytes)
        self._worker: asyncio.Task[None] | None = None

    def has_room(self, size: int, tenant: str = "") -> bool:
        """Return whether an item of `size` bytes may be submitted now."""
        return self._waiting.has_room(tenant, size)

    async def submit(self, item: Item, *, size: int = 0, tenant: str = "") -> Result:
        """Flush `item` of `size` bytes and return its result; raise the error of its flush, or `Overloaded`."""
        submission = self._enqueue((item,), size, tenant)
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
        self._enqueue((item,))

    async def submit_all(self, items: Sequence[Item]) -> list[Result | Failed]:
        """Flush `items` in one batch; return a result or `Failed` for each item."""
        if not items:
            return []
        submission = self._enqueue(items)
        try:
            return await submission.flushed
        except asyncio.CancelledError:
            self._withdraw(submission)
            raise

    def _enqueue(self, items: Sequence[Item], size: int = 0, tenant: str = "") -> Submission[Item, Result]:
        flushed: asyncio.Future[list[Result | Failed]] = asyncio.get_running_loop().create_future()
        submission = Submission(items, flushed, size, tenant)
        for dropped in self._waiting.add(submission):
            if not dropped.flushed.done():
                dropped.flushed.set_result([Failed(Overloaded()) for _ in dropped.items])
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain())
        return submission

    def _withdraw(self, submission: Submission[Item, Result]) -> None:
        # A flush may take hours during an outage. Meanwhile the same item may be submitted again and again.
        with suppress(ValueError):  # raised if its batch has begun
            self._waiting.remove(submission)

    async def drained(self) -> None:
        """Wait until no item is waiting or being flushed."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait({self._worker})

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # Nothing can join a full batch, and waiting would limit the rate to one full batch per interval.
            if len(self._waiting) < self._max_batch and (wait := self._next_flush_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            taken = self._waiting.take(self._max_batch, self._max_batch_bytes)
            # The items of callers that were cancelled before the flush began are not flushed.
            if batch := [submission for submission in taken if not submission.flushed.done()]:
                if self._observe is not None:
                    self._observe(len(batch))
                count = sum(len(submission.items) for submission in batch)
                self._next_flush_at = loop.time() + self._interval_after(count)
                await self._flush_batch(batch)

    async def _flush_batch(self, batch: Sequence[Submission[Item, Result]]) -> None:
        groups: Sequence[Sequence[Item]] = [submission.items for submission in batch]
        if not self._whole_submissions:
            groups = [(item,) for items in groups for item in items]
        try:
            outcomes = await self._flush_or_bisect(groups)
        except BaseException:
            for submission in (*batch, *self._waiting.clear()):
                submission.flushed.cancel()
            raise
        first = 0
        for submission in batch:
            end = first + len(submission.items)
            if not submission.flushed.done():
                submission.flushed.set_result(outcomes[first:end])
            first = end

    async def _flush_or_bisect(self, groups: Sequence[Sequence[Item]]) -> list[Result | Failed]:
        items = [item for group in groups for item in group]
        try:
            return list(await self._flush(items))
        except Exception as error:  # noqa: BLE001 - not handled here: it is passed on to the callers
            if len(groups) <= 1 or not isinstance(error, self._rejections):
                return [Failed(error) for _ in items]
        middle = len(groups) // 2
        return [*await self._flush_or_bisect(groups[:middle]), *await self._flush_or_bisect(groups[middle:])]
