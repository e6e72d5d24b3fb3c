"""The rate limit for each API key."""

from notify_database.engine import PostgresSettings
from notify_gateway.http.authentication import Scope
from notify_gateway.http.rate_limit import RequestRateLimiter
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import bearer
from support.services import NOWHERE, running_gateway


def test_rate_limit_refills_over_time() -> None:
    limit = RequestRateLimiter(10)
    allowed = ["Retry-After" not in limit.count("key", 0.0) for _ in range(25)]
    assert allowed == [True] * 20 + [False] * 5
    assert "Retry-After" not in limit.count("another", 0.0)
    assert "Retry-After" not in limit.count("key", 0.1)
    assert "Retry-After" in limit.count("key", 0.1)
    assert RequestRateLimiter(0).count("key", 0.0) == {}


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
