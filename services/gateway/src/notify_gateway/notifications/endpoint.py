"""`POST /v1/notifications` as a bare ASGI application, because it is called thousands of times per second.

FastAPI's layers would double the cost of a request (`docs/decisions/0009-post-without-layers.md`). `routes.py` declares
and documents the route. The same application serves the older URL, `POST /api/notifications` (`legacy/post.py`).
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from notify_common.contracts.trace_context import read_traceparent
from notify_common.runtime.tracing import UNRECORDED, Span, Tracing
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from notify_gateway.errors import ClientDisconnected
from notify_gateway.http.authentication import Authenticator, require_scope
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.http.problems import response_to
from notify_gateway.http.request_id import REQUEST_ID
from notify_gateway.http.strict_json import parse_json
from notify_gateway.notifications.created import created_json
from notify_gateway.notifications.idempotency import IdempotencyKey, claim_of
from notify_gateway.notifications.intake import NotificationIntake
from notify_gateway.notifications.new_notification import NewNotification, new_notification
from notify_gateway.notifications.schemas import NotificationRequest

log = logging.getLogger(__name__)

IDEMPOTENCY_KEY = TypeAdapter(IdempotencyKey)


class PostVersion(NamedTuple):
    """A version of this endpoint: how it reads the request and renders the response."""

    path: str
    request_model: type[BaseModel]
    """The model of the body, which is a `RequestedNotification`."""
    render: Callable[[NewNotification], str]
    """Renders the response to a request that has been accepted."""
    visible_to: Callable[[Principal, str, BaseModel], str]
    """Removes from a response what the principal may not see."""
    has_location: bool


V1 = PostVersion(
    "/v1/notifications",
    NotificationRequest,
    created_json,
    visible_to=lambda _principal, response, _request: response,  # it names no recipients, which some may not see
    has_location=True,
)


class NotificationEndpoint:
    """The ASGI application that accepts notifications."""

    def __init__(
        self, authenticator: Authenticator, intake: NotificationIntake, tracing: Tracing, version: PostVersion
    ) -> None:
        self._authenticator = authenticator
        self._intake = intake
        self._tracing = tracing
        self._version = version
        self.path = version.path
        self._span_name = f"POST {version.path}"
        self._span_attributes = {"http.request.method": "POST", "http.route": version.path}

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # The headers are reversed so that the first value wins if a header occurs twice.
        request_headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        span = UNRECORDED
        try:
            # Authenticate before reading the body, so that a client without a key cannot make us read it.
            authorization = _text(request_headers.get(b"authorization"))
            principal, rate_limit_headers = await self._authenticator.authenticate(scope, authorization)
            span = self._begin_span(principal, request_headers, scope.get(REQUEST_ID, ""))
            response_headers, body = await self._create_notification(principal, request_headers, receive, span)
        except ClientDisconnected:
            span.fail("client disconnected")
            return
        except asyncio.CancelledError:
            span.fail("cancelled or timed out")
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
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *_encoded(rate_limit_headers),
            *_encoded(response_headers),
        ]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _begin_span(self, principal: Principal, request_headers: Mapping[bytes, bytes], request_id: str) -> Span:
        """Begin the span, in the client's trace if its key permits that.

        A sampled `traceparent` makes the gateway export spans, and a client could add them to another tenant's trace.
        """
        parent = None
        if Scope.TRACE in principal.scopes:
            parent = read_traceparent(_text(request_headers.get(b"traceparent")))
        attributes = self._span_attributes
        if self._tracing.on:
            attributes = {**attributes, "notify.request_id": request_id}
        return self._tracing.begin(self._span_name, parent, "server", attributes)

    async def _create_notification(
        self, principal: Principal, request_headers: Mapping[bytes, bytes], receive: Receive, span: Span
    ) -> tuple[Mapping[str, str], bytes]:
        """Store the notification durably; return further headers and the body of the 201 response."""
        require_scope(principal, Scope.SEND)
        body = await _read_body(receive)
        # Parsing a large body takes long. If the request would be refused anyway, it must not delay others with that.
        self._intake.require_room(principal.tenant, len(body))
        content_type = _text(request_headers.get(b"content-type")) or ""
        request, size = _parse(self._version.request_model, body, content_type), len(body)
        del body  # it would otherwise stay in memory until the notification is committed
        key = _idempotency_key(request_headers)
        claim = None if key is None else claim_of(request, principal.tenant, key, test=principal.test)
        notification = new_notification(
            request, principal.tenant, span.traceparent, api_key_id=principal.api_key_id, test=principal.test
        )
        receipt = await self._intake.accept(notification, claim, self._version.render, size=size)
        if self._tracing.on and not receipt.replayed:
            span.set({"http.response.status_code": HTTPStatus.CREATED, "notify.notification_id": notification.id})
        response = self._version.visible_to(principal, receipt.response, request)
        headers = {"Idempotent-Replayed": "true"} if receipt.replayed else {}
        if self._version.has_location:
            created_id = json.loads(response)["id"] if receipt.replayed else notification.id
            headers["Location"] = f"{self._version.path}/{created_id}"
        return headers, response.encode()


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


def _parse(model: type[BaseModel], body: bytes, content_type: str) -> Any:  # noqa: ANN401
    """Parse and validate the body; raise the `RequestValidationError` that FastAPI would raise.

    The result is a `model` and a `RequestedNotification`, for which Python has no common type.
    """
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
        return model.model_validate(content)
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
