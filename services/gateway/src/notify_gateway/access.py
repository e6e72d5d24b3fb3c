"""The door of the API: which key came with a request, what it may do, and how often."""

import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from notify_database.engine import DatabaseAway
from typing_extensions import override

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

    async def admit(self, authorization: str | None) -> tuple[Access, dict[str, str]]:
        """The access of the bearer, and the headers that tell how much it may still ask; or 401, 429."""
        access = await self._access(authorization)
        headers = self._rate_limit.take(access.key, time.monotonic())
        if "Retry-After" in headers:
            raise HTTPException(429, "Too many requests with this key.", headers)
        return access, headers

    async def still_admits(self, authorization: str | None, access: Access) -> bool:
        """Whether the bearer may do what it could; it may as long as PostgreSQL can not say."""
        try:
            return await self._access(authorization) == access
        except HTTPException:
            return False
        except DatabaseAway:
            return True

    async def _access(self, authorization: str | None) -> Access:
        if not self._closed:
            return EVERYBODY
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise HTTPException(401, "An API key is needed: Authorization: Bearer <key>.", CHALLENGE)
        access = await self._keys.access(token.strip())
        if access is None:
            raise HTTPException(401, "This API key is not known, or was revoked.", CHALLENGE)
        return access


class StrictRequest(Request):
    """A request whose JSON says each thing once."""

    @override
    async def json(self) -> Any:
        return read_json(await self.body())


class KeyedRoute(APIRoute):
    """Asks for the key before it reads the body."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def admit_and_handle(request: Request) -> Response:
            door: Door = request.app.state.gateway.door
            request.state.admitted = await door.admit(request.headers.get("Authorization"))
            return await handle(StrictRequest(request.scope, request.receive))

        return admit_and_handle


def read_json(body: bytes) -> Any:  # noqa: ANN401 - JSON is anything
    """What `body` says, if it says it clearly and each thing once; else a `JSONDecodeError` that tells why."""
    try:
        return json.loads(body, object_pairs_hook=_each_once)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, a number too long, too deep
        raise json.JSONDecodeError(f"{type(error).__name__}: {error}", "", 0) from None


def require(access: Access, scope: Scope) -> None:
    """403 where the key does not have the scope."""
    if scope not in access.scopes:
        challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
        raise HTTPException(403, f"This key does not have the scope {scope}.", challenge)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise json.JSONDecodeError("a field comes twice", "", 0)
    return found


def _needs(scope: Scope) -> Callable[..., Awaitable[Access]]:
    async def enter(request: Request, response: Response, _: Annotated[object, Depends(bearer)]) -> Access:
        access, headers = request.state.admitted
        require(access, scope)
        response.headers.update(headers)
        return cast("Access", access)

    return enter


Sending = Annotated[Access, Depends(_needs(Scope.SEND))]
Reading = Annotated[Access, Depends(_needs(Scope.READ))]
Administering = Annotated[Access, Depends(_needs(Scope.ADMIN))]
Operating = Annotated[Access, Depends(_needs(Scope.OPERATOR))]
