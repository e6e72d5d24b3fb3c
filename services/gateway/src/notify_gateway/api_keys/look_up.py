"""Look up API keys, and remember the answers for a few seconds.

Keys that were valid at their last look-up are looked up separately from keys that nobody has seen, and are remembered
separately from keys that were rejected. A flood of made-up keys therefore neither delays nor evicts the valid ones.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from cachetools import TTLCache
from notify_common.runtime.batcher import Batcher

from notify_gateway.api_keys.store import key_hash
from notify_gateway.api_keys.valid_keys import ValidKey, ValidKeys
from notify_gateway.http.principal import Principal

CACHE_SECONDS = 5.0  # a revoked key may still be accepted for this long
REJECTED_SECONDS = 1.0  # a key that was tried too early may be rejected for this long after its creation
CACHED_KEYS = 10_000  # valid keys, and as many rejected ones
KEYS_PER_STATEMENT = 100
MAX_UNKNOWN = 1_000  # unknown keys that wait for their look-up; more requests with unknown keys get a 503

Principals = Mapping[bytes, Principal]
"""The owners of valid keys by the hashes of the keys."""


class ApiKeyLookUp:
    """Looks up keys with `find`, which returns the owners of those hashes that belong to valid keys.

    Implements `KeyLookUp`.
    """

    def __init__(
        self,
        find: Callable[[Sequence[bytes]], Awaitable[Principals]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._clock = clock
        self._valid = ValidKeys(CACHED_KEYS)
        self._rejected: TTLCache[bytes, bool] = TTLCache(CACHED_KEYS, REJECTED_SECONDS, clock)
        self._in_progress: dict[bytes, asyncio.Task[Principal | None]] = {}
        self._valid_keys = Batcher(self._find_all, max_batch=KEYS_PER_STATEMENT)
        self._unknown_keys = Batcher(self._find_all, max_batch=KEYS_PER_STATEMENT, max_waiting=MAX_UNKNOWN)

    def cached(self, token: str) -> Principal | None:
        """Return the owner of `token` if the last look-up is recent enough."""
        valid = self._valid.get(key_hash(token))
        if valid is None or self._clock() - valid.looked_up_at >= CACHE_SECONDS:
            return None
        return valid.principal

    def is_new(self, token: str) -> bool:
        """Return True unless `token` was valid at its last look-up, however long ago, or is being looked up now."""
        hashed = key_hash(token)
        return hashed not in self._valid and hashed not in self._in_progress

    def known_tenant(self, token: str) -> str | None:
        """Return the tenant of `token` if it was valid at its last look-up, however long ago."""
        valid = self._valid.get(key_hash(token))
        return None if valid is None else valid.principal.tenant

    async def look_up(self, token: str) -> Principal | None:
        """Return the owner of `token`, or None if it is unknown or no longer valid.

        Concurrent calls with the same token share one look-up. May raise `DatabaseUnavailable` or `Overloaded`.
        """
        hashed = key_hash(token)
        if hashed in self._rejected:
            return None
        task = self._in_progress.get(hashed)
        if task is None:
            task = self._in_progress[hashed] = asyncio.create_task(self._look_up(hashed))
            task.add_done_callback(lambda done: self._finished(hashed, done))
        # A caller that is cancelled must not cancel the look-up for the others.
        return await asyncio.shield(task)

    def remember(self, principals: Principals, since: float) -> None:
        """Remember that only these keys, which were read after `since`, and those used after `since` are valid.

        Each is looked up, as a known key, before it is accepted.
        """
        self._valid.forget_unused(since, keep=frozenset(principals))
        for hashed, principal in principals.items():
            if hashed not in self._valid and len(self._valid) < CACHED_KEYS:
                self._valid.add(hashed, ValidKey(principal, looked_up_at=float("-inf"), used_at=float("-inf")))

    def used(self, since: float) -> dict[str, float]:
        """Return the times of the last use of the keys that were used since then, by their ids."""
        return {valid.principal.key_id: valid.used_at for valid in self._valid if valid.used_at >= since}

    async def _look_up(self, hashed: bytes) -> Principal | None:
        lane = self._valid_keys if hashed in self._valid else self._unknown_keys
        looked_up_at = self._clock()
        principal = await lane.submit(hashed)
        if principal is None:
            self._valid.discard(hashed)
            self._rejected[hashed] = True
        else:
            self._valid.add(hashed, ValidKey(principal, looked_up_at, used_at=self._clock()))
        return principal

    async def _find_all(self, hashes: Sequence[bytes]) -> Sequence[Principal | None]:
        principals = await self._find(hashes)
        return [principals.get(hashed) for hashed in hashes]

    def _finished(self, hashed: bytes, task: "asyncio.Task[Principal | None]") -> None:
        del self._in_progress[hashed]
        if not task.cancelled():
            task.exception()  # if all callers were cancelled, nobody else retrieves it
