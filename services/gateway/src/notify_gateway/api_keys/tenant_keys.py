"""Manage the API keys of a tenant on behalf of one of its keys."""

import logging
from uuid import UUID

from fastapi import HTTPException
from notify_common.runtime.clock import utc_now
from notify_database.engine import database_errors
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.api_keys.schemas import CreatedKey, Key, KeyPage, KeyQuery, KeyRequest
from notify_gateway.api_keys.store import ApiKeyStore, count_valid, insert_key, lock_valid
from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.errors import RequestRejected
from notify_gateway.http.authentication import invalid_key, require_scope
from notify_gateway.http.principal import Principal

log = logging.getLogger(__name__)

MAX_VALID_KEYS = 1_000
"""A tenant with more takes up space that the gateways need to remember the keys of other tenants."""
TOO_MANY_KEYS = f"The tenant already has {MAX_VALID_KEYS} valid keys, the maximum; revoke keys that are no longer used."
CONCURRENT = 1  # requests of a tenant on each gateway

PAGE = text("""
    SELECT id, name, scopes, test, created_at, expires_at, last_used_at, revoked_at FROM api_keys
    WHERE tenant = :tenant AND (CAST(:cursor AS uuid) IS NULL OR id < CAST(:cursor AS uuid))
    ORDER BY id DESC LIMIT :limit
""")


class TenantKeys:
    """Creates, lists and revokes keys of one tenant."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._store = ApiKeyStore(engine)
        # Not part of the share for other requests: a stolen key could use that up, and so delay its own revocation.
        self._share = TenantShare(CONCURRENT)
        self._reads = TenantReads(engine, self._share)

    async def create(self, creator: Principal, request: KeyRequest) -> CreatedKey:
        """Create a key that can do no more than `creator`, and for no longer; raise 403 if the request asks for more.

        Raise 409 if the tenant has `MAX_VALID_KEYS` keys already. Concurrent requests may exceed this by a few.
        The creator is looked up again, because a key that was just revoked must not be able to replace itself in the
        seconds in which gateways still accept it.
        """
        for scope in request.scopes:
            require_scope(creator, scope)
        if (rejection := request.rejection_at(utc_now())) is not None:
            raise RequestRejected(rejection)
        async with self._share.slot(creator.tenant):
            key_id, token = await self._create(creator, request)
        log.info("API key created", extra={"api_key_id": str(key_id), "by": creator.key_id})
        return CreatedKey(
            id=key_id,
            token=token,
            name=request.name,
            scopes=sorted(set(request.scopes)),
            test=request.test,
            expires_at=request.expires_at,
        )

    async def page(self, tenant: str, query: KeyQuery) -> KeyPage:
        """Return a page of the tenant's keys, newest first, including revoked and expired keys."""
        # One more key than fits on the page is requested, to find out whether there is a next page.
        rows = await self._reads.execute(tenant, PAGE, cursor=query.cursor, limit=query.limit + 1)
        keys = [Key.model_validate(row) for row in rows]
        items, has_more = keys[: query.limit], len(keys) > query.limit
        return KeyPage(items=items, next_cursor=items[-1].id if has_more else None, has_more=has_more)

    async def revoke(self, revoker: Principal, key_id: UUID) -> bool:
        """Revoke a key of the same tenant; return False if it is unknown or already revoked."""
        async with self._share.slot(revoker.tenant):
            revoked = await self._store.revoke(key_id, tenant=revoker.tenant)
        if revoked:
            log.info("API key revoked", extra={"api_key_id": str(key_id), "by": revoker.key_id})
        return revoked

    async def _create(self, creator: Principal, request: KeyRequest) -> tuple[UUID, str]:
        with database_errors():
            async with self._engine.begin() as connection:
                if creator.api_key_id is not None:
                    await _check_creator(connection, creator.api_key_id, request)
                if await count_valid(connection, creator.tenant) >= MAX_VALID_KEYS:
                    raise HTTPException(409, TOO_MANY_KEYS)
                return await insert_key(
                    connection,
                    creator.tenant,
                    request.name,
                    frozenset(request.scopes),
                    expires_at=request.expires_at,
                    test=request.test,
                )


async def _check_creator(connection: AsyncConnection, creator_id: str, request: KeyRequest) -> None:
    """Raise 401 if the creator is no longer valid, and 403 if the new key would outlive it."""
    creator = await lock_valid(connection, creator_id)
    if creator is None:
        raise invalid_key()
    if creator.expires_at is not None and (request.expires_at is None or request.expires_at > creator.expires_at):
        latest = creator.expires_at.isoformat()
        raise HTTPException(403, f"expires_at: must not be later than {latest}, when this key expires")
