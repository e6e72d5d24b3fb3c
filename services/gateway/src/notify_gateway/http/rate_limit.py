"""Limit the requests per API key with token buckets that all gateways share.

PostgreSQL holds one bucket for each key that is in use (`api_keys/shared_rate_limits.py`). Each gateway admits
requests from its own share of that bucket, without a round trip. Its share is the part of the key's requests that
arrive at this gateway. About once per second, it reports what it has admitted, and learns what is in the bucket.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

BURST_SECONDS = 2  # a key may use this many seconds' worth of requests at once
BUCKETS = 10_000
REPORTED_PART = 0.05  # a key is reported once it has used this part of a second's limit; rarely used keys cost no query
STALE_REPORT = 5.0  # seconds; after a longer pause, the requests of the other gateways were made at another time


@dataclass(slots=True)
class _Bucket:
    """This gateway's share of a key's bucket, and what it has not reported yet."""

    tokens: float
    filled_at: float
    reported_at: float
    share: float = 1.0
    admitted: int = 0
    requests: int = 0
    all_requests: int | None = None
    """The requests of all gateways, as of the last report."""


class Usage(NamedTuple):
    """The requests of one key that a gateway has counted since its last report."""

    key: str
    seconds: float
    """The time since that report, or since the first request."""
    admitted: int
    requests: int
    """All requests, including those that were rejected."""


class SharedBucket(NamedTuple):
    """The bucket that all gateways share, after a report."""

    key: str
    tokens: float
    """Negative if the gateways together have admitted more than the limit."""
    requests: int
    """The requests that all gateways have reported so far."""


class RequestRateLimiter:
    """The buckets of one gateway; `per_second` is the limit of each key, or 0 for no limit."""

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self.size = per_second * BURST_SECONDS
        self._policy = f'"key";q={self.size};w={BURST_SECONDS}'
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, key: str, now: float) -> dict[str, str]:
        """Count one request and return the headers for its response (draft-ietf-httpapi-ratelimit-headers).

        The headers include `Retry-After` if the request exceeds the limit.
        """
        if not self.per_second:
            return {}
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._add(key, now)
        else:
            self._buckets.move_to_end(key)
        rate = self.per_second * bucket.share
        tokens = bucket.tokens + (now - bucket.filled_at) * rate
        # Several gateways may have less than one token each, but the bucket must always hold one.
        tokens = min(tokens, max(self.size * bucket.share, 1.0))
        bucket.filled_at = now
        bucket.requests += 1
        if tokens < 1:
            bucket.tokens = tokens
            wait = math.ceil((1 - tokens) / rate)
            return {"RateLimit-Policy": self._policy, "RateLimit": f'"key";r=0;t={wait}', "Retry-After": str(wait)}
        bucket.tokens = tokens - 1
        bucket.admitted += 1
        return {"RateLimit-Policy": self._policy, "RateLimit": f'"key";r={int(bucket.tokens)};t=1'}

    def usage(self, now: float) -> list[Usage]:
        """Return the usage of the keys that have enough unreported requests."""
        least = self.per_second * REPORTED_PART
        return [
            Usage(key, now - bucket.reported_at, bucket.admitted, bucket.requests)
            for key, bucket in self._buckets.items()
            if bucket.requests and bucket.requests >= least
        ]

    def reported(self, usage: Sequence[Usage], shared: Iterable[SharedBucket], now: float) -> None:
        """Continue with this gateway's shares of the `shared` buckets. `usage` was reported at the time `now`."""
        reports = {report.key: report for report in usage}
        for key, tokens, all_requests in shared:
            bucket, report = self._buckets.get(key), reports[key]
            if bucket is None:
                continue  # it was discarded in the meantime
            if report.seconds > STALE_REPORT:
                bucket.share = 1.0
            elif bucket.all_requests is not None:
                # The counter restarts if the row was deleted.
                bucket.share = report.requests / max(report.requests, all_requests - bucket.all_requests)
            bucket.all_requests = all_requests
            bucket.admitted -= report.admitted
            bucket.requests -= report.requests
            # If one token is left, any gateway may use it: at low limits, no gateway has a whole token as its share.
            bucket.tokens = max(tokens * bucket.share, min(tokens, 1.0)) - bucket.admitted
            bucket.filled_at = bucket.reported_at = now

    def count_alone(self) -> None:
        """Give this gateway the whole limit of each key, because the gateways cannot share it now.

        Requests that were counted until then are never reported, because keys would otherwise be in debt after a long
        outage.
        """
        for bucket in self._buckets.values():
            bucket.share = 1.0
            bucket.admitted = bucket.requests = 0
            bucket.all_requests = None

    def _add(self, key: str, now: float) -> _Bucket:
        bucket = self._buckets[key] = _Bucket(self.size, now, now)
        if len(self._buckets) > BUCKETS:
            self._buckets.popitem(last=False)  # the key that has been unused for longest
        return bucket
