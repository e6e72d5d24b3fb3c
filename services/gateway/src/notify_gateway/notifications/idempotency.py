"""Idempotency keys: a repeated request gets the response to the first one, and nothing is sent twice.

This follows draft-ietf-httpapi-idempotency-key-header. A key belongs to a tenant and lives for 24 hours. Requests with
test keys have idempotency keys of their own, so that they neither block nor replay real ones.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from notify_database.engine import execute
from pydantic import BaseModel, StringConstraints
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.errors import IdempotencyKeyReused

TEST_PREFIX = "test\t"  # precedes the stored keys of test requests; no client's key can contain a tab
LIFETIME = timedelta(hours=24)
ROWS_PER_CLEANUP = 1000

# The rows are inserted in key order, so that two gateways claiming the same keys cannot deadlock. The second gateway
# waits here until the first one commits.
CLAIM = text("""
    INSERT INTO idempotency_keys AS known (tenant, key, body_hash, answer, created_at)
    SELECT tenant, key, body_hash, answer, now()
    FROM unnest(
        CAST(:tenants AS text[]), CAST(:keys AS text[]), CAST(:body_hashes AS bytea[]), CAST(:responses AS text[])
    ) AS claim (tenant, key, body_hash, answer)
    ORDER BY tenant, key
    ON CONFLICT (tenant, key) DO UPDATE
        SET body_hash = excluded.body_hash, answer = excluded.answer, created_at = excluded.created_at
        WHERE known.created_at < now() - CAST(:lifetime AS interval)
    RETURNING tenant, key
""")
# A response is read only for a request with the same body. The responses that one statement returns are therefore not
# much longer than the requests of its batch, whose length is limited. The lock makes the commit wait until a
# synchronous standby has the response, which could otherwise be replayed and then lost in a failover.
RECORDED = text("""
    SELECT tenant, key, claim.body_hash AS claimed_hash, known.body_hash,
           CASE WHEN known.body_hash = claim.body_hash THEN answer END AS answer
    FROM unnest(CAST(:tenants AS text[]), CAST(:keys AS text[]), CAST(:body_hashes AS bytea[]))
        AS claim (tenant, key, body_hash)
    CROSS JOIN LATERAL (
        SELECT body_hash, answer FROM idempotency_keys
        WHERE tenant = claim.tenant AND key = claim.key LIMIT 1 FOR KEY SHARE
    ) AS known
""")
# The order makes PostgreSQL use the index. When its statistics are an hour old, it expects many expired keys, and would
# otherwise search the whole table for the few that there are.
CLEAN_UP = text("""
    DELETE FROM idempotency_keys WHERE (tenant, key) IN (
        SELECT tenant, key FROM idempotency_keys
        WHERE created_at < now() - CAST(:lifetime AS interval)
        ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
""")

IdempotencyKey = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern="^[ -~]+$")]
TenantKey = tuple[str, str]
"""A tenant and one of its idempotency keys."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request's claim to an idempotency key."""

    tenant_key: TenantKey
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """The response (JSON) to the first request with an idempotency key."""

    body_hash: bytes
    response: str | None
    """None if it was looked up for a request with another body."""

    def replay(self, claim: Claim) -> str:
        """Return the response; raise `IdempotencyKeyReused` if `claim` belongs to a different request."""
        if claim.body_hash != self.body_hash or self.response is None:
            raise IdempotencyKeyReused
        return self.response


Responses = dict[TenantKey, RecordedResponse]


def claim_of(request: BaseModel, tenant: str, key: str, *, test: bool) -> Claim:
    """Return the request's claim to the client's `key`; `test` says whether it was posted with a test key."""
    return Claim((tenant, TEST_PREFIX + key if test else key), body_hash(request))


def body_hash(request: BaseModel) -> bytes:
    """Return a hash of the request that does not depend on whitespace or field order."""
    canonical = json.dumps(request.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(canonical.encode()).digest()


async def claim_keys(connection: AsyncConnection, responses: Responses) -> set[TenantKey]:
    """Record `responses` under their keys; return the keys that an earlier request has claimed."""
    tenants, keys = zip(*responses, strict=True)
    hashes = [recorded.body_hash for recorded in responses.values()]
    texts = [recorded.response for recorded in responses.values()]
    parameters = {"tenants": tenants, "keys": keys, "body_hashes": hashes, "responses": texts, "lifetime": LIFETIME}
    claimed = {(row.tenant, row.key) for row in await connection.execute(CLAIM, parameters)}
    return responses.keys() - claimed


async def find_recorded(connection: AsyncConnection, claims: Collection[Claim]) -> dict[Claim, RecordedResponse]:
    """Return what is recorded under the keys of these claims."""
    distinct = set(claims)
    tenants, keys = zip(*(claim.tenant_key for claim in distinct), strict=True)
    hashes = [claim.body_hash for claim in distinct]
    rows = await connection.execute(RECORDED, {"tenants": tenants, "keys": keys, "body_hashes": hashes})
    return {
        Claim((row.tenant, row.key), bytes(row.claimed_hash)): RecordedResponse(bytes(row.body_hash), row.answer)
        for row in rows
    }


async def clean_up(engine: AsyncEngine) -> bool:
    """Delete up to `ROWS_PER_CLEANUP` expired keys; return True if there may be more."""
    deleted = await execute(engine, CLEAN_UP, lifetime=LIFETIME, limit=ROWS_PER_CLEANUP)
    return deleted.rowcount == ROWS_PER_CLEANUP
