"""Limit the requests per API key with token buckets."""

from dataclasses import dataclass

from cachetools import LRUCache

BURST_SECONDS = 2  # a key may use this many seconds' worth of requests at once
BUCKETS = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RequestRateLimiter:
    """Token buckets, one per API key. Each process counts separately, so n gateways admit up to n times the rate."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._size = per_second * BURST_SECONDS
        self._buckets: LRUCache[str, _Bucket] = LRUCache(BUCKETS)

    def count(self, key: str, now: float) -> dict[str, str]:
        """Count one request and return the headers for its response (draft-ietf-httpapi-ratelimit-headers).

        The headers include `Retry-After` if the request exceeds the limit.
        """
        if not self._per_second:
            return {}
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._size, now)
        bucket.tokens = min(self._size, bucket.tokens + (now - bucket.filled_at) * self._per_second)
        bucket.filled_at = now
        headers = {"RateLimit-Policy": f'"key";q={self._size};w={BURST_SECONDS}'}
        if bucket.tokens < 1:
            return {**headers, "RateLimit": '"key";r=0;t=1', "Retry-After": "1"}
        bucket.tokens -= 1
        return {**headers, "RateLimit": f'"key";r={int(bucket.tokens)};t=1'}
