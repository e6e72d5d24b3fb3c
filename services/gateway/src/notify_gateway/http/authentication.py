"""Authenticate requests: an API key identifies a principal, whose scopes say what the principal may do."""

import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn, Protocol, cast

from fastapi import Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from notify_common.errors import Overloaded
from notify_database.errors import DatabaseUnavailable
from starlette.types import Scope as AsgiScope
from typing_extensions import override

from notify_gateway.http.arriving_body import BODY
from notify_gateway.http.client_address import ClientAddresses
from notify_gateway.http.dependencies import provided
from notify_gateway.http.failure_limit import FailureLimiter
from notify_gateway.http.principal import ANONYMOUS, Principal, Scope
from notify_gateway.http.rate_limit import RequestRateLimiter
from notify_gateway.http.strict_json import parse_json
from notify_gateway.metrics import AuthenticationFailure
from notify_gateway.settings import KEY_FORM

CHALLENGE = {"WWW-Authenticate": "Bearer"}  # RFC 6750, section 3

bearer = HTTPBearer(auto_error=False, description="An API key, created with `notify-gateway keys create`.")


class KeyLookUp(Protocol):
    """Looks up the owners of API keys."""

    def cached(self, token: str) -> Principal | None:
        """Return the owner of `token` if it was looked up a moment ago."""

    def is_new(self, token: str) -> bool:
        """Return True unless `token` was valid at its last look-up, however long ago, or is being looked up now."""

    def known_tenant(self, token: str) -> str | None:
        """Return the tenant of `token` if it was valid at its last look-up, however long ago."""

    async def look_up(self, token: str) -> Principal | None:
        """Return the owner of `token`, or None if the token is unknown or no longer valid.

        May raise `DatabaseUnavailable` or `Overloaded`.
        """


DETAILS = {
    AuthenticationFailure.MISSING: "An API key is required: Authorization: Bearer <key>.",
    AuthenticationFailure.MALFORMED: "This is not an API key: keys have 43 to 200 letters, digits, `-` and `_`.",
    # The text does not say which of these applies, because the client may be an attacker.
    AuthenticationFailure.UNKNOWN: "This API key is unknown, was revoked or has expired.",
}


class Authenticator:
    """Identifies the principal of a request, which is always `ANONYMOUS` if authentication is not `enabled`.

    `count_failure` is called with the reason of each failed authentication.
    """

    def __init__(
        self,
        look_ups: KeyLookUp,
        rate_limiter: RequestRateLimiter,
        addresses: ClientAddresses,
        count_failure: Callable[[AuthenticationFailure], None] = lambda _: None,
        *,
        enabled: bool,
    ) -> None:
        self._look_ups = look_ups
        self._rate_limiter = rate_limiter
        self._addresses = addresses
        self._failures = FailureLimiter()
        self._count_failure = count_failure
        self._enabled = enabled

    async def authenticate(self, scope: AsgiScope, authorization: str | None) -> tuple[Principal, dict[str, str]]:
        """Return the principal and the rate-limit headers for the response; may raise 401 or 429.

        Without authentication there are no keys, and therefore no limits per key.
        """
        if not self._enabled:
            return ANONYMOUS, {}
        token = _token(authorization or "")
        if token is None:
            self._fail(AuthenticationFailure.MISSING)
        principal = self._look_ups.cached(token)
        if principal is None:
            principal = await self._look_up(token, scope)
        headers = self._rate_limiter.count(principal.key_id, time.monotonic())
        if "Retry-After" in headers:
            raise HTTPException(429, "Too many requests were made with this key.", headers)
        if (body := scope.get(BODY)) is not None:
            body.belongs_to(principal.tenant)
        return principal, headers

    def known_tenant(self, authorization: str) -> str | None:
        """Return the tenant of a key that was valid at its last look-up, without looking it up again."""
        token = _token(authorization) if self._enabled else None
        return None if token is None else self._look_ups.known_tenant(token)

    async def is_still(self, principal: Principal, authorization: str | None) -> bool:
        """Return whether the key still belongs to `principal`; assume that it does while PostgreSQL is unavailable."""
        if not self._enabled:
            return True
        token = _token(authorization or "") or ""
        try:
            return (self._look_ups.cached(token) or await self._look_ups.look_up(token)) == principal
        except (DatabaseUnavailable, Overloaded):
            return True

    async def _look_up(self, token: str, scope: AsgiScope) -> Principal:
        """Return the owner of a key that is not cached; raise 401 or 429 if it has none."""
        if KEY_FORM.fullmatch(token) is None:
            self._fail(AuthenticationFailure.MALFORMED)
        if self._look_ups.is_new(token):
            principal = await self._look_up_new(token, self._addresses.group(scope))
        else:
            # The failures of others must not affect a valid key: behind a proxy or NAT, all have the same address.
            principal = await self._look_ups.look_up(token)
        return self._fail(AuthenticationFailure.UNKNOWN) if principal is None else principal

    async def _look_up_new(self, token: str, address: str) -> Principal | None:
        if wait := self._failures.attempt(address, time.monotonic()):
            self._count_failure(AuthenticationFailure.THROTTLED)
            detail = "Too many requests with unknown API keys came from this address."
            raise HTTPException(429, detail, {"Retry-After": str(wait)})
        failed = False
        try:
            principal = await self._look_ups.look_up(token)
            failed = principal is None
        finally:
            # If the look-up itself has failed, the key may be valid.
            if not failed:
                self._failures.succeeded(address)
        return principal

    def _fail(self, failure: AuthenticationFailure) -> NoReturn:
        self._count_failure(failure)
        raise HTTPException(401, DETAILS[failure], CHALLENGE)


def _token(authorization: str) -> str | None:
    """Return the token of a header `Authorization`, or None if its scheme is another one."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def invalid_key() -> HTTPException:
    """Return the error for a key that is not valid."""
    return HTTPException(401, DETAILS[AuthenticationFailure.UNKNOWN], CHALLENGE)


def require_scope(principal: Principal, scope: Scope, *alternatives: Scope) -> None:
    """Raise 403 unless `principal` has the scope or one of the alternatives."""
    if principal.scopes.isdisjoint((scope, *alternatives)):
        # The challenge names one scope, because a list would mean that all of them are required (RFC 6750, section 3).
        challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
        names = " or ".join((scope, *alternatives))
        raise HTTPException(403, f"This key does not have the scope {names}.", challenge)


class StrictRequest(Request):
    """A request that parses JSON with `parse_json`."""

    @override
    async def json(self) -> Any:
        return parse_json(await self.body())


class AuthenticatedRoute(APIRoute):
    """A route that checks the key and its scopes before the body is read, which a FastAPI dependency cannot do."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        get_authenticator = provided(Authenticator)
        dependencies = [dependency.call for dependency in self.dependant.dependencies]
        required = [each.scopes for each in dependencies if isinstance(each, _PrincipalWith)]

        async def authenticate_and_handle(request: Request) -> Response:
            authenticator = await get_authenticator(request)
            authorization = request.headers.get("Authorization")
            principal, headers = await authenticator.authenticate(request.scope, authorization)
            for scopes in required:
                require_scope(principal, *scopes)
            request.state.authenticated = principal, headers
            return await handle(StrictRequest(request.scope, request.receive))

        return authenticate_and_handle


class _PrincipalWith:
    """A dependency on a principal that has one of these scopes."""

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = scopes

    async def __call__(self, request: Request, response: Response, _: Annotated[object, Depends(bearer)]) -> Principal:
        principal, headers = request.state.authenticated
        require_scope(principal, *self.scopes)
        response.headers.update(headers)
        return cast("Principal", principal)


CanSend = Annotated[Principal, Depends(_PrincipalWith(Scope.SEND))]
CanRead = Annotated[Principal, Depends(_PrincipalWith(Scope.READ))]
CanAdminister = Annotated[Principal, Depends(_PrincipalWith(Scope.ADMIN))]
CanOperate = Annotated[Principal, Depends(_PrincipalWith(Scope.OPERATOR))]
CanReadRecipients = Annotated[Principal, Depends(_PrincipalWith(Scope.RECIPIENTS_READ))]
CanWriteRecipients = Annotated[Principal, Depends(_PrincipalWith(Scope.RECIPIENTS_WRITE))]
CanCancel = Annotated[Principal, Depends(_PrincipalWith(Scope.ADMIN, Scope.SEND))]
"""With `send` alone, a key may cancel only what it posted itself."""
