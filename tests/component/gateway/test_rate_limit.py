"""The rate limit for each API key."""

import asyncio
import time
from collections import Counter
from uuid import uuid4

import pytest
from notify_database.engine import PostgresSettings
from notify_database.errors import DatabaseUnavailable
from notify_gateway.api_keys.shared_rate_limits import SharedRateLimits
from notify_gateway.http.principal import Scope
from notify_gateway.http.rate_limit import BURST_SECONDS, RequestRateLimiter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import bearer, rows
from support.services import NOWHERE, eventually, running_gateway

LIMIT = 200


def test_rate_limit_refills_over_time() -> None:
    limit = RequestRateLimiter(10)
    allowed = ["Retry-After" not in limit.count("key", 0.0) for _ in range(25)]
    assert allowed == [True] * 20 + [False] * 5
    assert "Retry-After" not in limit.count("another", 0.0)
    assert "Retry-After" not in limit.count("key", 0.1)
    assert "Retry-After" in limit.count("key", 0.1)
    assert RequestRateLimiter(0).count("key", 0.0) == {}


async def test_key_gets_its_limit_from_two_gateways_together(engine: AsyncEngine) -> None:
    keys = [str(uuid4()) for _ in range(2)]
    gateways = [RequestRateLimiter(LIMIT) for _ in range(2)]
    shared = [SharedRateLimits(engine, gateway) for gateway in gateways]
    began, admitted = time.monotonic(), Counter[str]()
    while (elapsed := time.monotonic() - began) < 4:
        # The gateways report one after the other, and far more requests than allowed arrive in between.
        for gateway, buckets in zip(gateways, shared, strict=True):
            for key in keys:
                admitted[key] += sum("Retry-After" not in gateway.count(key, time.monotonic()) for _ in range(LIMIT))
            await buckets.report()
    unreported = LIMIT * 0.2
    for key in keys:
        assert LIMIT * elapsed * 0.8 <= admitted[key] <= LIMIT * (elapsed + 2 * BURST_SECONDS) + unreported


async def test_gateways_that_report_the_same_keys_at_the_same_time_do_not_deadlock(engine: AsyncEngine) -> None:
    keys = [str(uuid4()) for _ in range(500)]
    limiters = [RequestRateLimiter(1), RequestRateLimiter(1)]
    for _ in range(10):
        for limiter, order in zip(limiters, (keys, keys[::-1]), strict=True):
            for key in order:
                limiter.count(key, time.monotonic())
        await asyncio.gather(*(SharedRateLimits(engine, limiter).report() for limiter in limiters))


async def test_slow_key_costs_no_statement(engine: AsyncEngine) -> None:
    limiter = RequestRateLimiter(1000)
    limiter.count(str(uuid4()), 0.0)
    assert limiter.usage(1.0) == []
    await SharedRateLimits(engine, limiter).report()
    assert await rows(engine, "SELECT * FROM api_key_buckets") == []


async def test_gateway_counts_on_its_own_while_postgresql_is_unavailable(engine: AsyncEngine) -> None:
    key, limiter, another = str(uuid4()), RequestRateLimiter(10), RequestRateLimiter(10)
    buckets = [SharedRateLimits(engine, limiter), SharedRateLimits(engine, another)]
    for _ in range(2):  # a share needs two reports
        for gateway, shared in zip((limiter, another), buckets, strict=True):
            for _ in range(30):
                gateway.count(key, 0.0)
            await shared.report()
    assert "Retry-After" in limiter.count(key, time.monotonic())
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE api_key_buckets RENAME TO hidden"))
    with pytest.raises(DatabaseUnavailable):
        await buckets[0].report()
    later = time.monotonic() + 60
    admitted = ["Retry-After" not in limiter.count(key, later + second) for second in (0, 1) for _ in range(25)]
    assert admitted == [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15


async def test_unused_buckets_are_deleted(engine: AsyncEngine) -> None:
    limiter = RequestRateLimiter(1)
    shared = SharedRateLimits(engine, limiter)
    limiter.count(str(uuid4()), time.monotonic())
    await shared.report()
    await shared.delete_unused()
    [[count]] = await rows(engine, "SELECT count(*) FROM api_key_buckets")
    assert count == 1
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE api_key_buckets SET updated_at = now() - interval '1 hour'"))
    await shared.delete_unused()
    assert await rows(engine, "SELECT * FROM api_key_buckets") == []


async def test_running_gateway_reports_what_its_keys_use(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    headers = await bearer(engine, Scope.READ)
    async with running_gateway(NOWHERE, postgres, auth="on", rate_limit=10) as api:
        for _ in range(3):
            assert (await api.get("/api/links", headers=headers)).status_code == 200

        async def is_reported() -> bool:
            reported = await rows(engine, "SELECT admitted, requests FROM api_key_buckets")
            return [tuple(row) for row in reported] == [(3, 3)]

        await eventually(is_reported, "the three requests are reported")


async def test_requests_without_authentication_have_no_limit(postgres: PostgresSettings) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="off", rate_limit=1) as api:
        responses = [await api.get("/api/links") for _ in range(5)]
    assert {response.status_code for response in responses} == {200}
    assert "RateLimit" not in responses[0].headers


async def test_key_over_its_rate_limit_gets_429_with_retry_after(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    headers = await bearer(engine, Scope.READ)
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on", rate_limit=1) as api:
        responses = [await api.get("/api/notifications", headers=headers) for _ in range(4)]
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["Retry-After"] == "1"
    assert responses[0].headers["RateLimit-Policy"] == '"key";q=2;w=2'
    assert responses[0].headers["RateLimit"].startswith('"key";r=1;')
