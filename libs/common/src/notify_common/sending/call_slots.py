"""Limit concurrent calls by several quotas at once, such as those of a host and of a tenant."""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """A number of concurrent calls, which all calls with the same name share."""

    name: str
    calls: int


class CallSlots:
    """Counts how many calls of each quota are in progress.

    A call gets a slot of all its quotas at the same moment. While it waits for one of them it holds none, because
    otherwise the calls that wait for a busy host would use up the quota of their tenant, or the other way round.
    """

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """The waiting calls, each in the queue of a quota that it found exhausted."""

    async def acquire(self, quotas: Sequence[Quota]) -> None:
        """Wait until no quota is exhausted, and take a slot of each."""
        woken_by: str | None = None
        while (exhausted := self._exhausted(quotas, new=woken_by is None)) is not None:
            if woken_by is not None and woken_by != exhausted:
                self._wake(woken_by)  # this call leaves the slot for which it was woken to the next one
            await self._wait(exhausted, first=woken_by == exhausted)
            woken_by = exhausted
        for quota in quotas:
            self._used[quota.name] += 1
            if self._used[quota.name] < quota.calls:
                self._wake(quota.name)  # several slots may have become free while only this call was waiting

    def release(self, quotas: Sequence[Quota]) -> None:
        """Return the slots."""
        for quota in quotas:
            self._used[quota.name] -= 1
            if not self._used[quota.name]:
                del self._used[quota.name]
            self._wake(quota.name)

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
