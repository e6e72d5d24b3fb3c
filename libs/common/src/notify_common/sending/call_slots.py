"""Limit concurrent calls by several quotas at once, such as those of a host and of a tenant."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from notify_common.sending.return_times import LONGEST_WAIT, SHORTEST_WAIT, ReturnTimes


@dataclass(frozen=True, slots=True)
class Quota:
    """A number of concurrent calls, which all calls with the same name share."""

    name: str
    calls: int
    waiting: int | None = None
    """The number of calls that may wait at once, for this quota or another one of theirs; None if there is no limit."""


class CallSlots:
    """Counts how many calls of each quota are in progress.

    A call gets a slot of all its quotas at the same moment. While it waits for one of them it holds none, because
    otherwise the calls that wait for a busy host would use up the quota of their tenant, or the other way round.
    """

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """The waiting calls, each in the queue of a quota that it found exhausted."""
        self._waiting_calls: Counter[str] = Counter()
        self._return_times = ReturnTimes()

    def exhausted(self, quotas: Sequence[Quota]) -> bool:
        """Return True if a call would have to wait for a slot."""
        return self._exhausted(quotas, new=True) is not None

    def crowded(self, quotas: Sequence[Quota], timeout: float) -> bool:
        """Return True if a call that must wait should not, because others of its tenant wait, or it would time out."""
        if all(quota.waiting is None for quota in quotas):
            return False
        if any(quota.waiting is not None and self._waiting_calls[quota.name] >= quota.waiting for quota in quotas):
            return True
        return any(self._expected_wait(quota) > timeout for quota in quotas)

    @contextmanager
    def waiting(self, quotas: Sequence[Quota]) -> Iterator[None]:
        """Count a call that waits, until the context ends."""
        names = [quota.name for quota in quotas if quota.waiting is not None]
        self._waiting_calls.update(names)
        try:
            yield
        finally:
            for name in names:
                self._waiting_calls[name] -= 1
                if not self._waiting_calls[name]:
                    del self._waiting_calls[name]

    def return_in(self, quotas: Sequence[Quota]) -> float:
        """Return how many seconds a call that got no slot should wait until it tries again."""
        now = _now()
        exhausted = [quota for quota in quotas if self.exhausted((quota,))]
        waits = [self._return_times.reserve(quota.name, quota.calls, now) for quota in exhausted]
        wait = max(waits, default=SHORTEST_WAIT)
        return wait if wait < LONGEST_WAIT else self.pause(quotas) or wait

    def pause(self, quotas: Sequence[Quota]) -> float | None:
        """Count a call that probably cannot be made soon.

        Return how many seconds it should wait if too many calls of its tenant are waiting, else None.
        """
        now = _now()
        waits = [self._return_times.pause(quota.name, now) for quota in quotas if quota.waiting is not None]
        return max((wait for wait in waits if wait is not None), default=None)

    async def acquire(self, quotas: Sequence[Quota]) -> float:
        """Wait until no quota is exhausted, and take a slot of each; return the time."""
        woken_by: str | None = None
        while (exhausted := self._exhausted(quotas, new=woken_by is None)) is not None:
            if woken_by is not None and woken_by != exhausted:
                self._wake(woken_by)  # this call leaves the slot for which it was woken to the next one
            await self._wait(exhausted, first=woken_by == exhausted)
            woken_by = exhausted
        now = _now()
        for quota in quotas:
            self._used[quota.name] += 1
            self._return_times.taken(quota.name, now)
            if self._used[quota.name] < quota.calls:
                self._wake(quota.name)  # several slots may have become free while only this call was waiting
        return now

    def release(self, quotas: Sequence[Quota], acquired_at: float) -> None:
        """Return the slots."""
        now = _now()
        for quota in quotas:
            self._return_times.returned(quota.name, now, now - acquired_at)
            self._used[quota.name] -= 1
            if not self._used[quota.name]:
                del self._used[quota.name]
            self._wake(quota.name)

    def _expected_wait(self, quota: Quota) -> float:
        if not self.exhausted((quota,)):
            return 0.0
        position = len(self._waiting.get(quota.name, ())) + 1
        return position * self._return_times.seconds_per_slot(quota.name, quota.calls, _now())

    def _exhausted(self, quotas: Sequence[Quota], *, new: bool) -> str | None:
        """Return the name of a quota that has no slot for this call, or None if all have one."""
        for quota in quotas:
            # A new call must not overtake those that wait for the same quota.
            if (new and quota.name in self._waiting) or self._used.get(quota.name, 0) >= quota.calls:
                return quota.name
        return None

    async def _wait(self, name: str, *, first: bool) -> None:
        waiter = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(name, deque())
        (queue.appendleft if first else queue.append)(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):
                    queue.remove(waiter)
            else:
                self._wake(name)  # this call was woken, so the next one must be instead
            raise
        finally:
            if not queue and self._waiting.get(name) is queue:
                del self._waiting[name]

    def _wake(self, name: str) -> None:
        """Let the next call that waits for the quota check again what it needs."""
        queue = self._waiting.get(name)
        while queue:
            waiter = queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        # Otherwise the next call would wait behind calls that have given up.
        self._waiting.pop(name, None)


def _now() -> float:
    return asyncio.get_running_loop().time()
