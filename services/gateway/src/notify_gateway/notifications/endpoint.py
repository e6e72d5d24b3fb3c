"""`POST /api/notifications` as a bare ASGI application, because it is called thousands of times per second.

FastAPI's layers would double the cost of a request (`docs/decisions/0009-post-without-layers.md`). `routes.py` declares
and documents the route.
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from notify_common.contracts.trace_context import read_traceparent
from notify_common.runtime.tracing import UNRECORDED, Span, Tracing
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from notify_gateway.errors import ClientDisconnected
from notify_gateway.http.authentication import Authenticator, require_scope
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.http.problems import response_to
from notify_gateway.http.strict_json import parse_json
from notify_gateway.notifications.idempotency import IdempotencyKey, claim_of
from notify_gateway.notifications.intake import NotificationIntake
from notify_gateway.notifications.new_notification import new_notification, without_stored_recipients
from notify_gateway.notifications.schemas import NotificationRequest

log = logging.getLogger(__name__)

SPAN_ATTRIBUTES = {"http.request.method": "POST", "http.route": "/api/notifications"}
IDEMPOTENCY_KEY = TypeAdapter(IdempotencyKey)


class NotificationEndpoint:
    """The ASGI application that accepts notifications."""

    def __init__(self, authenticator: Authenticator, intake: NotificationIntake, tracing: Tracing) -> None:
        self._authenticator = authenticator
        self._intake = intake
        self._tracing = tracing

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # The headers are reversed so that the first value wins if a header occurs twice.
        request_headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        span = UNRECORDED
        try:
            # Authenticate before reading the body, so that a client without a key cannot make us read it.
            authorization = _text(request_headers.get(b"authorization"))
            principal, rate_limit = await self._authenticator.authenticate(scope, authorization)
            span = self._begin_span(principal, request_headers)
            response_headers, body = await self._accept(principal, request_headers, receive, span)
        except ClientDisconnected:
            span.fail("client disconnected")
            return
        except asyncio.CancelledError:
            span.fail("timed out")
            raise
        except Exception as error:
            response = response_to(error)
            if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
                log.exception("request failed")
                span.fail(type(error).__name__)
            span.set({"http.response.status_code": response.status_code})
            await response(scope, receive, send)
            return
        finally:
            span.end()
        length = (b"content-length", b"%d" % len(body))
        headers = [(b"content-type", b"application/json"), length, *_encoded(rate_limit), *_encoded(response_headers)]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _begin_span(self, principal: Principal, request_headers: Mapping[bytes, bytes]) -> Span:
        """Begin the span, in the client's trace if its key permits that.

        A sampled `traceparent` makes us record and export, and a client could name the trace of another tenant.
        """
        parent = None
        if Scope.TRACE in principal.scopes:
            parent = read_traceparent(_text(request_headers.get(b"traceparent")))
        return self._tracing.begin("POST /api/notifications", parent, "server", SPAN_ATTRIBUTES)

    async def _accept(
        self, principal: Principal, request_headers: Mapping[bytes, bytes], receive: Receive, span: Span
    ) -> tuple[Mapping[str, str], bytes]:
        """Store the notification durably; return further headers and the body of the 201 response."""
        require_scope(principal, Scope.SEND)
        body = await _read_body(receive)
        # Parsing a large body takes long. A tenant whose requests are refused must not delay others with that.
        self._intake.require_room(principal.tenant, len(body))
        request, size = _parse(body, _text(request_headers.get(b"content-type")) or ""), len(body)
        del body  # it would otherwise stay in memory until the notification is committed
        key = _idempotency_key(request_headers)
        claim = None if key is None else claim_of(request, principal.tenant, key, test=principal.test)
        notification = new_notification(
            request, principal.tenant, span.traceparent, api_key_id=principal.api_key_id, test=principal.test
        )
        receipt = await self._intake.accept(notification, claim, size=size)
        if self._tracing.on and not receipt.replayed:
            span.set({"http.response.status_code": HTTPStatus.CREATED, "notify.notification_id": notification.id})
        response = receipt.response
        if Scope.RECIPIENTS_READ not in principal.scopes and not request.names_all_recipients():
            response = without_stored_recipients(response, request)
        return {"Idempotent-Replayed": "true"} if receipt.replayed else {}, response.encode()


async def _read_body(receive: Receive) -> bytes:
    # `http/middleware.py` limits the size of the body.
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _parse(body: bytes, content_type: str) -> NotificationRequest:
    """Parse and validate the body; raise the `RequestValidationError` that FastAPI would raise."""
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
    subtype = content_type.partition(";")[0].strip().lower()
    try:
        is_json = subtype == "application/json" or (subtype.startswith("application/") and subtype.endswith("+json"))
        content = parse_json(body) if is_json else body
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "", "ctx": {"error": error.msg}}
        raise RequestValidationError([problem]) from None
    try:
        return NotificationRequest.model_validate(content)
    except ValidationError as error:
        raise RequestValidationError(_located(error, "body")) from None


def _idempotency_key(headers: Mapping[bytes, bytes]) -> str | None:
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    try:
        return IDEMPOTENCY_KEY.validate_python(_text(key))
    except ValidationError as error:
        raise RequestValidationError(_located(error, "header", "idempotency-key")) from None


def _located(error: ValidationError, *location: str) -> list[dict[str, Any]]:
    return [{**problem, "loc": (*location, *problem["loc"])} for problem in error.errors(include_url=False)]


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _encoded(headers: Mapping[str, str]) -> Iterable[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
