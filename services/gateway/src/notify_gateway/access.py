"""The door of the API: which key came with a request, what it may do, and how often."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from notify_gateway.api_keys import EVERYBODY, Access, ApiKeys, Scope

# RFC 6750, section 3.
CHALLENGE = {"WWW-Authenticate": "Bearer"}
BURST_SECONDS = 2  # how much of its rate a key may use at once
BUCKETS = 10_000

bearer = HTTPBearer(auto_error=False, description="An API key: `notify-gateway keys create`.")


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit:
    """A token bucket per key. The counts are this process's own: with n gateways a key has n times the rate."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._size = per_second * BURST_SECONDS
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: str, now: float) -> dict[str, str]:
        """Count one request; the headers that tell the client (draft-ietf-httpapi-ratelimit-headers).

        `Retry-After` is among them where the request is one too many.
        """
        if not self._per_second:
            return {}
        if len(self._buckets) >= BUCKETS:
            self._buckets.clear()
        bucket = self._buckets.setdefault(key, _Bucket(self._size, now))
        bucket.tokens = min(self._size, bucket.tokens + (now - bucket.filled_at) * self._per_second)
        bucket.filled_at = now
        headers = {"RateLimit-Policy": f'"key";q={self._size};w={BURST_SECONDS}'}
        if bucket.tokens < 1:
            return {**headers, "RateLimit": '"key";r=0;t=1', "Retry-After": "1"}
        bucket.tokens -= 1
        return {**headers, "RateLimit": f'"key";r={int(bucket.tokens)};t=1'}


class Door:
    """Lets in who has a key with the right scope; everybody where there is no authentication."""

    def __init__(self, keys: ApiKeys, rate_limit: RateLimit, *, closed: bool) -> None:
        self._keys = keys
        self._rate_limit = rate_limit
        self._closed = closed

    async def enter(self, token: str | None, scope: Scope, response: Response) -> Access:
        """The access of the bearer, or 401, 403, 429."""
        access = await self._access(token)
        headers = self._rate_limit.take(access.key, time.monotonic())
        if "Retry-After" in headers:
            raise HTTPException(429, "Too many requests with this key.", headers)
        if scope not in access.scopes:
            challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
            raise HTTPException(403, f"This key does not have the scope {scope}.", challenge)
        response.headers.update(headers)
        return access

    async def _access(self, token: str | None) -> Access:
        if not self._closed:
            return EVERYBODY
        if token is None:
            raise HTTPException(401, "An API key is needed: Authorization: Bearer <key>.", CHALLENGE)
        access = await self._keys.access(token)
        if access is None:
            raise HTTPException(401, "This API key is not known, or was revoked.", CHALLENGE)
        return access


def _needs(scope: Scope) -> Callable[..., Awaitable[Access]]:
    async def enter(
        request: Request,
        response: Response,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> Access:
        door: Door = request.app.state.gateway.door
        return await door.enter(credentials.credentials if credentials else None, scope, response)

    return enter


Sending = Annotated[Access, Depends(_needs(Scope.SEND))]
Reading = Annotated[Access, Depends(_needs(Scope.READ))]
Administering = Annotated[Access, Depends(_needs(Scope.ADMIN))]
