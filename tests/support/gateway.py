"""Requests, API keys and queries that several tests of the gateway share."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from notify_common.contracts.channels import Channel
from notify_gateway.api_keys.store import ApiKeyStore, key_hash
from notify_gateway.http.principal import Principal, Scope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

Json = dict[str, Any]
BODY: Json = {"user_id": 123, "message": "Your code: 11111", "type": "telegram"}


async def post(api: httpx.AsyncClient, **change: Any) -> Json:
    """Post `BODY`, overridden by `change`, and return the created notification."""
    answer = await api.post("/api/notifications", json={**BODY, **change})
    assert answer.status_code == 201, answer.text
    created: Json = answer.json()
    return created


async def bearer(engine: AsyncEngine, *scopes: Scope, tenant: str = "default") -> dict[str, str]:
    """Create an API key with these scopes, and return the request header that contains it."""
    _, token = await ApiKeyStore(engine).create(tenant, "test key", frozenset(scopes))
    return {"Authorization": f"Bearer {token}"}


async def owner(engine: AsyncEngine, token: str) -> Principal | None:
    """Return the owner of an API key, or None if it is not valid."""
    hashed = key_hash(token)
    return (await ApiKeyStore(engine).principals([hashed])).get(hashed)


def bootstrap_key(number: int) -> str:
    """Return a value for BOOTSTRAP_API_KEY."""
    return f"bootstrap-key-{number:032}"


async def all_channels_idle() -> list[Channel]:
    """Return every channel, as if RabbitMQ reported that nothing waits in its queues."""
    return list(Channel)


async def rows(engine: AsyncEngine, statement: str) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(text(statement)))


def soon(**delta: float) -> str:
    """Return the time `delta` from now, in the format that the API expects."""
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()
