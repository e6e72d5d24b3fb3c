"""Limit the failed authentications of each client address."""

import math
from dataclasses import dataclass

from cachetools import LRUCache

# A client may try 20 unknown keys at once, and then one per second; further ones get a 429 without a look-up. Guessing
# a key is hopeless at any rate: the limit exists because each unknown key costs a look-up in PostgreSQL.
BURST = 20
PER_SECOND = 1
ADDRESSES = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class FailureLimiter:
    """Token buckets, one per client address. An attempt takes a token, and gives it back if it was successful."""

    def __init__(self) -> None:
        self._buckets: LRUCache[str, _Bucket] = LRUCache(ADDRESSES)

    def attempt(self, address: str, now: float) -> int:
        """Count an attempt as failed and return 0; if there were too many, return after how many seconds to retry."""
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = _Bucket(BURST, now)
        bucket.tokens = min(BURST, bucket.tokens + (now - bucket.filled_at) * PER_SECOND)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return math.ceil((1 - bucket.tokens) / PER_SECOND)
        bucket.tokens -= 1
        return 0

    def succeeded(self, address: str) -> None:
        """Stop counting an attempt as failed."""
        bucket = self._buckets.get(address)
        if bucket is not None:
            bucket.tokens = min(BURST, bucket.tokens + 1)
