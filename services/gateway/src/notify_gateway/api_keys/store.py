"""API keys in PostgreSQL.

A key is shown once, when it is created. The database stores only its SHA-256 hash: a key has 256 random bits, so a
plain hash cannot be reversed by guessing.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from notify_common.contracts.ids import new_id, to_millisecond
from notify_common.errors import StartupError
from notify_common.runtime.clock import utc_now
from notify_database.engine import database_errors, execute
from notify_database.errors import DataRejected
from notify_database.models import ApiKey
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    LargeBinary,
    Row,
    and_,
    any_,
    case,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.http.principal import DEFAULT_TENANT, Principal, Scope

BOOTSTRAP_ID = UUID(int=1)  # a fixed id, because there is only one bootstrap key
FORMER_LIFETIME = timedelta(days=90)  # for operators who ask when a key was revoked or expired
FORMER_KEYS = 10_000  # of a tenant; one that creates and revokes keys again and again must not fill the database
KEYS_PER_CLEANUP = 1_000
PREFIX = "ntf_"  # lets secret scanners recognise a key
TEST_PREFIX = "ntf_test_"  # lets people recognise a test key

# Two gateways that wait for each other's rows would deadlock. A locked row is skipped, because the gateway that has
# locked it stores about the same time.
TOUCH = text("""
    WITH locked AS (
        SELECT id FROM api_keys WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE api_keys AS key SET last_used_at = GREATEST(key.last_used_at, now() - make_interval(secs => used.age))
    FROM locked JOIN unnest(CAST(:ids AS uuid[]), CAST(:ages AS float8[])) AS used (id, age) USING (id)
    WHERE key.id = locked.id
""")
# A key is deleted only if it is no longer valid by both clocks, because one that is wrong must not delete valid keys.
# If the bootstrap key were deleted, the next start of a gateway would make it valid again.
DELETE_FORMER = text("""
    WITH clock AS (SELECT LEAST(now(), CAST(:now AS timestamptz)) AS now),
    former AS (
        SELECT id, LEAST(revoked_at, expires_at) AS ended_at,
               row_number() OVER (PARTITION BY tenant ORDER BY id DESC) AS position
        FROM api_keys, clock WHERE LEAST(revoked_at, expires_at) <= clock.now AND id <> :bootstrap_id
    ),
    deleted AS (
        SELECT key.id FROM api_keys AS key JOIN former USING (id), clock
        WHERE former.ended_at < clock.now - CAST(:lifetime AS interval) OR former.position > :kept
        LIMIT :limit FOR UPDATE OF key SKIP LOCKED
    )
    DELETE FROM api_keys USING deleted WHERE api_keys.id = deleted.id
""")


class ApiKeyStore:
    """Stores API keys in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def principals(self, hashes: Sequence[bytes]) -> dict[bytes, Principal]:
        """Return the owners of those of `hashes` that belong to valid keys; may raise `DatabaseUnavailable`."""
        # An array keeps the text of the statement the same, so that PostgreSQL prepares it only once.
        any_hash = any_(literal(list(hashes), ARRAY(LargeBinary)))
        statement = select(ApiKey).where(ApiKey.hash == any_hash, _is_valid())
        return {bytes(key.hash): _principal(key) for key in await execute(self._engine, statement)}

    async def valid(self, limit: int) -> dict[bytes, Principal]:
        """Return the owners of up to `limit` valid keys, those that were used last; may raise `DatabaseUnavailable`."""
        last_used = ApiKey.last_used_at.desc().nulls_last()
        statement = select(ApiKey).where(_is_valid()).order_by(last_used).limit(limit)
        return {bytes(key.hash): _principal(key) for key in await execute(self._engine, statement)}

    async def touch(self, ages: Mapping[str, float]) -> None:
        """Store how many seconds ago keys were last used, by their ids; may raise `DatabaseUnavailable`."""
        if ages:
            await execute(self._engine, TOUCH, ids=[UUID(key_id) for key_id in ages], ages=list(ages.values()))

    async def create(
        self,
        tenant: str,
        name: str,
        scopes: frozenset[Scope],
        *,
        expires_at: datetime | None = None,
        test: bool = False,
    ) -> tuple[UUID, str]:
        """Create a key; return its id and the key itself, which cannot be read again."""
        with database_errors():
            async with self._engine.begin() as connection:
                return await insert_key(connection, tenant, name, scopes, expires_at=expires_at, test=test)

    async def ensure_bootstrap_key(self, token: str) -> None:
        """Make `token` the bootstrap key, replacing any earlier one; a revoked token stays revoked.

        Raise `StartupError` if `token` is already another key, which has other rights than the operator expects.
        """
        statement = insert(ApiKey).values(_values(BOOTSTRAP_ID, token, DEFAULT_TENANT, "bootstrap", frozenset(Scope)))
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=[ApiKey.id],
            set_={
                "hash": new.hash,
                "created_at": new.created_at,
                "scopes": new.scopes,
                "revoked_at": case((ApiKey.hash == new.hash, ApiKey.revoked_at)),
            },
            where=or_(ApiKey.hash != new.hash, ApiKey.scopes != new.scopes),
        )
        try:
            await execute(self._engine, statement)
        except DataRejected as error:  # only the hash can be in conflict
            raise StartupError(
                "BOOTSTRAP_API_KEY: is already the key of another entry in `notify-gateway keys list`, perhaps of a "
                "revoked one; choose a new key"
            ) from error

    async def list(self) -> Sequence[Row[Any]]:
        """Return the `api_keys` rows, oldest first, including those of revoked keys."""
        return (await execute(self._engine, select(ApiKey).order_by(ApiKey.id))).all()

    async def revoke(self, key_id: UUID, *, tenant: str | None = None) -> bool:
        """Revoke a key, if it belongs to `tenant` or no tenant is given; return False if it is unknown or revoked."""
        statement = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=utc_now())
        if tenant is not None:
            statement = statement.where(ApiKey.tenant == tenant)
        return (await execute(self._engine, statement)).rowcount > 0


async def insert_key(
    connection: AsyncConnection,
    tenant: str,
    name: str,
    scopes: frozenset[Scope],
    *,
    expires_at: datetime | None,
    test: bool,
) -> tuple[UUID, str]:
    """Create a key; return its id and the key itself."""
    token = (TEST_PREFIX if test else PREFIX) + secrets.token_urlsafe(32)
    key_id = new_id(utc_now())
    values = {**_values(key_id, token, tenant, name, scopes), "expires_at": expires_at, "test": test}
    await connection.execute(insert(ApiKey).values(values))
    return key_id, token


async def delete_former_keys(engine: AsyncEngine, clock: Callable[[], datetime] = utc_now) -> bool:
    """Delete up to `KEYS_PER_CLEANUP` keys that were revoked or expired long ago; return True if there may be more.

    Of each tenant, only the latest `FORMER_KEYS` are kept.
    """
    values = {
        "now": clock(),
        "lifetime": FORMER_LIFETIME,
        "kept": FORMER_KEYS,
        "bootstrap_id": BOOTSTRAP_ID,
        "limit": KEYS_PER_CLEANUP,
    }
    return (await execute(engine, DELETE_FORMER, **values)).rowcount == KEYS_PER_CLEANUP


async def lock_valid(connection: AsyncConnection, key_id: str) -> Row[Any] | None:
    """Return a key's `api_keys` row, or None if the key is unknown, revoked or expired.

    Until the transaction ends, the key is not revoked: a revocation waits for it.
    """
    statement = select(ApiKey).where(ApiKey.id == UUID(key_id), _is_valid()).with_for_update(read=True)
    return (await connection.execute(statement)).one_or_none()


async def count_valid(connection: AsyncConnection, tenant: str) -> int:
    """Return how many valid keys the tenant has."""
    statement = select(func.count()).where(ApiKey.tenant == tenant, _is_valid())
    return (await connection.execute(statement)).scalar_one()


def _is_valid() -> ColumnElement[bool]:
    not_expired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    return and_(ApiKey.revoked_at.is_(None), not_expired)


def key_hash(token: str) -> bytes:
    """Return the hash under which a key is stored."""
    return hashlib.sha256(token.encode()).digest()


def _principal(key: Row[Any]) -> Principal:
    # A newer gateway may have stored scopes that this one does not know.
    return Principal(str(key.id), key.tenant, frozenset(scope for scope in Scope if scope in key.scopes), key.test)


def _values(key_id: UUID, token: str, tenant: str, name: str, scopes: frozenset[Scope]) -> dict[str, object]:
    now, hashed = to_millisecond(utc_now()), key_hash(token)
    return {"id": key_id, "tenant": tenant, "name": name, "hash": hashed, "scopes": sorted(scopes), "created_at": now}
