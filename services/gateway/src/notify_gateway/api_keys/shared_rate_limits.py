"""Share the rate limits of API keys between all gateways."""

import time
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from notify_database.engine import autocommitting, execute
from notify_database.errors import DatabaseUnavailable, DataRejected
from sqlalchemy import Double, bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.http.rate_limit import RequestRateLimiter, SharedBucket

BUCKET_LIFETIME = timedelta(minutes=10)  # a bucket that nobody takes from is full long before

# The rows are locked in the order of their keys, so that gateways that report at the same time do not deadlock. The
# clock is read after the row has been locked: now() could be earlier than the report that was waited for.
REPORT = text("""
    INSERT INTO api_key_buckets AS bucket (key_id, tokens, admitted, requests, updated_at)
    SELECT key_id, LEAST(:size, :size + :per_second * seconds - admitted), admitted, requests, clock_timestamp()
    FROM unnest(
        CAST(:keys AS uuid[]), CAST(:seconds AS float8[]), CAST(:admitted AS bigint[]), CAST(:requests AS bigint[])
    ) AS used (key_id, seconds, admitted, requests)
    ORDER BY key_id
    ON CONFLICT (key_id) DO UPDATE SET
        tokens = LEAST(
            :size,
            bucket.tokens - excluded.admitted
                + :per_second * GREATEST(0, CAST(extract(epoch FROM clock_timestamp() - bucket.updated_at) AS float8))
        ),
        admitted = bucket.admitted + excluded.admitted,
        requests = bucket.requests + excluded.requests,
        updated_at = clock_timestamp()
    RETURNING key_id, tokens, requests
""").bindparams(*(bindparam(name, type_=Double()) for name in ("size", "per_second")))
DELETE_UNUSED = text("DELETE FROM api_key_buckets WHERE updated_at < now() - CAST(:lifetime AS interval)")


class SharedRateLimits:
    """The buckets in PostgreSQL from which the rate limiters of all gateways take."""

    def __init__(
        self, engine: AsyncEngine, rate_limiter: RequestRateLimiter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = autocommitting(engine)
        self._rate_limiter = rate_limiter
        self._clock = clock

    async def report(self) -> None:
        """Report what this gateway has admitted since the last report, and update its shares.

        If that fails, the gateway counts on its own, and `DatabaseUnavailable` or `DataRejected` is raised.
        """
        limiter, now = self._rate_limiter, self._clock()
        usage = limiter.usage(now)
        if not usage:
            return
        keys, seconds, admitted, requests = zip(*usage, strict=True)
        try:
            rows = await execute(
                self._engine,
                REPORT,
                size=limiter.size,
                per_second=limiter.per_second,
                keys=[UUID(key) for key in keys],
                seconds=seconds,
                admitted=admitted,
                requests=requests,
            )
        except (DatabaseUnavailable, DataRejected):
            limiter.count_alone()
            raise
        limiter.reported(usage, [SharedBucket(str(row.key_id), row.tokens, row.requests) for row in rows], now)

    async def delete_unused(self) -> None:
        """Delete the buckets of keys that are no longer used; may raise `DatabaseUnavailable`."""
        await execute(self._engine, DELETE_UNUSED, lifetime=BUCKET_LIFETIME)
