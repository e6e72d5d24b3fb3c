"""API keys: who may do what for which tenant. A key is shown once; the database has its SHA-256 only.

A key is 256 random bits, so that a plain hash of it can not be searched for what it was.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from notify_common.process import utc_now
from notify_database.engine import database_errors
from notify_database.models import ApiKey
from sqlalchemy import case, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from notify_gateway.ids import new_id, to_millisecond

CACHE_SECONDS = 5.0  # for so long a revoked key is still known to a process
CACHED_KEYS = 10_000
LOOK_UPS = 2  # at a time: unknown keys must not take the connections of those who have one
DEFAULT_TENANT = "default"
BOOTSTRAP_ID = UUID(int=1)  # there is one such key
PREFIX = "ntf_"  # lets secret scanners know one when they see it


class Scope(StrEnum):
    """What a key may be used for: all but the last within its tenant."""

    SEND = "send"
    READ = "read"
    ADMIN = "admin"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Access:
    """What the bearer of a key may do."""

    key: str
    """The key's id; what its requests are counted under."""
    tenant: str
    scopes: frozenset[Scope]


EVERYBODY = Access("everybody", DEFAULT_TENANT, frozenset(Scope))


class ApiKeys:
    """Keys in PostgreSQL, remembered for some seconds."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._remembered: dict[bytes, tuple[Access, float]] = {}
        self._looking_up = asyncio.Semaphore(LOOK_UPS)

    async def access(self, token: str) -> Access | None:
        """What the bearer of `token` may do; None where it is no key, or a revoked one. Raises `DatabaseAway`."""
        hashed = _hash(token)
        if (known := self._recall(hashed)) is not None:
            return known
        async with self._looking_up:
            # Who had it before may have looked it up.
            if (known := self._recall(hashed)) is not None:
                return known
            access = await self._look_up(hashed)
            self._remembered.pop(hashed, None)
            if access is not None:
                if len(self._remembered) >= CACHED_KEYS:
                    self._remembered.clear()
                self._remembered[hashed] = access, time.monotonic() + CACHE_SECONDS
            return access

    def _recall(self, hashed: bytes) -> Access | None:
        remembered = self._remembered.get(hashed)
        return remembered[0] if remembered is not None and remembered[1] > time.monotonic() else None

    async def create(self, tenant: str, name: str, scopes: frozenset[Scope]) -> tuple[UUID, str]:
        """A new key: its id and the key itself, which nobody can read again."""
        token = PREFIX + secrets.token_urlsafe(32)
        key = _row(token, tenant, name, scopes)
        key_id = key.id
        with database_errors():
            async with AsyncSession(self._engine) as session, session.begin():
                session.add(key)
        return key_id, token

    async def ensure(self, token: str) -> None:
        """Let `token` be the bootstrap key, in place of an earlier one; revoked, it stays so."""
        key = _row(token, DEFAULT_TENANT, "bootstrap", frozenset(Scope))
        key.id = BOOTSTRAP_ID
        values = {column.key: getattr(key, column.key) for column in ApiKey.__table__.columns}
        statement = insert(ApiKey).values(values)
        statement = statement.on_conflict_do_update(
            index_elements=[ApiKey.id],
            set_={
                "hash": key.hash,
                "created_at": key.created_at,
                "scopes": key.scopes,
                "revoked_at": case((ApiKey.hash == key.hash, ApiKey.revoked_at)),
            },
            where=or_(ApiKey.hash != key.hash, ApiKey.scopes != key.scopes),
        )
        with database_errors():
            async with self._engine.begin() as connection:
                await connection.execute(statement)

    async def list(self) -> list[ApiKey]:
        """All keys, the oldest first, revoked ones too."""
        with database_errors():
            async with AsyncSession(self._engine, expire_on_commit=False) as session:
                return list(await session.scalars(select(ApiKey).order_by(ApiKey.id)))

    async def revoke(self, key_id: UUID) -> bool:
        """Let the key be of no more use; say whether it was of any."""
        statement = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=utc_now())
        with database_errors():
            async with self._engine.begin() as connection:
                done = await connection.execute(statement)
        return done.rowcount > 0

    async def _look_up(self, hashed: bytes) -> Access | None:
        statement = text("SELECT id, tenant, scopes, hash FROM api_keys WHERE hash = :hash AND revoked_at IS NULL")
        with database_errors():
            async with self._engine.connect() as connection:
                row = (await connection.execute(statement, {"hash": hashed})).one_or_none()
        if row is None or not hmac.compare_digest(row.hash, hashed):
            return None
        # A newer gateway may have given it more.
        return Access(str(row.id), row.tenant, frozenset(scope for scope in Scope if scope in row.scopes))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _row(token: str, tenant: str, name: str, scopes: frozenset[Scope]) -> ApiKey:
    now = to_millisecond(utc_now())
    return ApiKey(
        id=new_id(now),
        tenant=tenant,
        name=name,
        hash=_hash(token),
        scopes=sorted(scopes),
        created_at=now,
        revoked_at=None,
    )
