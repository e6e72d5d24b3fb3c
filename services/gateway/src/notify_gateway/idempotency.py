"""Idempotency keys: a repeated request gets the answer that the first one got, and nothing is sent twice.

After draft-ietf-httpapi-idempotency-key-header. A key lives for 24 hours; it belongs to a tenant.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from notify_database.engine import database_errors
from pydantic import StringConstraints
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.schemas import NotificationRequest

LIFETIME = timedelta(hours=24)
CLEANED_AT_ONCE = 1000  # rows

# In key order: two gateways that share keys can not deadlock. Who comes second waits here for the first one's commit.
CLAIM = text("""
    INSERT INTO idempotency_keys AS known (tenant, key, body_hash, answer, created_at)
    SELECT tenant, key, body_hash, answer, now()
    FROM unnest(
        CAST(:tenants AS text[]), CAST(:keys AS text[]), CAST(:body_hashes AS bytea[]), CAST(:answers AS text[])
    ) AS claim (tenant, key, body_hash, answer)
    ORDER BY tenant, key
    ON CONFLICT (tenant, key) DO UPDATE
        SET body_hash = excluded.body_hash, answer = excluded.answer, created_at = excluded.created_at
        WHERE known.created_at < now() - CAST(:lifetime AS interval)
    RETURNING tenant, key
""")
ANSWERED = text("""
    SELECT tenant, key, body_hash, answer FROM idempotency_keys
    WHERE (tenant, key) IN (SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:keys AS text[])))
""")
CLEAN = text("""
    DELETE FROM idempotency_keys WHERE (tenant, key) IN (
        SELECT tenant, key FROM idempotency_keys
        WHERE created_at < now() - CAST(:lifetime AS interval)
        LIMIT :limit FOR UPDATE SKIP LOCKED
    )
""")


IdempotencyKey = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern="^[ -~]+$")]


class KeyReused(Exception):
    """The key was used with another body."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that wants its key, with the answer it gives if it is the first: known at its commit."""

    tenant: str
    key: str
    body_hash: bytes
    answer: str = ""

    @property
    def identity(self) -> tuple[str, str]:
        """What is unique."""
        return self.tenant, self.key

    def answer_to(self, repeat: "Claim") -> str:
        """What a later request with this key is answered; raises `KeyReused` where it is another request."""
        if repeat.body_hash != self.body_hash:
            raise KeyReused
        return self.answer


def body_hash(request: NotificationRequest) -> bytes:
    """Of what the body says: spaces and the order of fields make no other request."""
    told = json.dumps(request.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(told.encode()).digest()


async def claim_keys(connection: AsyncConnection, claims: Sequence[Claim]) -> dict[tuple[str, str], Claim]:
    """Take the keys for these claims, each once; return the ones answered before, whose keys are not taken."""
    won = {
        (row.tenant, row.key)
        for row in await connection.execute(
            CLAIM,
            {
                "tenants": [claim.tenant for claim in claims],
                "keys": [claim.key for claim in claims],
                "body_hashes": [claim.body_hash for claim in claims],
                "answers": [claim.answer for claim in claims],
                "lifetime": LIFETIME,
            },
        )
    }
    lost = [claim.identity for claim in claims if claim.identity not in won]
    if not lost:
        return {}
    return await _answered(connection, lost)


async def find_answered(engine: AsyncEngine, claim: Claim) -> Claim | None:
    """The earlier request with the key of this claim."""
    with database_errors():
        async with engine.connect() as connection:
            return (await _answered(connection, [claim.identity])).get(claim.identity)


async def _answered(connection: AsyncConnection, identities: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Claim]:
    tenants, keys = zip(*identities, strict=True)
    rows = await connection.execute(ANSWERED, {"tenants": list(tenants), "keys": list(keys)})
    return {(row.tenant, row.key): Claim(row.tenant, row.key, bytes(row.body_hash), row.answer) for row in rows}


async def clean_keys(engine: AsyncEngine) -> bool:
    """Forget some keys that have lived long enough; say whether there may be more."""
    with database_errors():
        async with engine.begin() as connection:
            done = await connection.execute(CLEAN, {"lifetime": LIFETIME, "limit": CLEANED_AT_ONCE})
    return done.rowcount == CLEANED_AT_ONCE
