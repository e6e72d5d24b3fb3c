"""`POST /api/notifications` straight from ASGI: the one route that is asked for thousands of times a second.

`api.py` documents it. Through FastAPI's layers it costs twice as much (`docs/decisions/0009-post-without-layers.md`).
"""

import json
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from notify_common.tracing import Span, read_traceparent
from pydantic import TypeAdapter, ValidationError

from notify_gateway.access import read_json, require
from notify_gateway.api_keys import Scope
from notify_gateway.gateway import Gateway
from notify_gateway.idempotency import Claim, IdempotencyKey, body_hash
from notify_gateway.limits import AsgiScope, Receive, Send
from notify_gateway.new_notification import new_notification
from notify_gateway.problems import answer_to
from notify_gateway.schemas import NotificationRequest

log = logging.getLogger(__name__)

SPAN_ATTRIBUTES = {"http.request.method": "POST", "http.route": "/api/notifications"}
IDEMPOTENCY_KEY = TypeAdapter(IdempotencyKey)


class PostNotification:
    """An ASGI endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sent: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # of one that comes twice, the first
        parent = read_traceparent(_text(sent.get(b"traceparent")))
        with self._gateway.tracing.begin("POST /api/notifications", parent, "server", SPAN_ATTRIBUTES) as span:
            try:
                headers, body = await self._accept(sent, receive, span)
            except ClientGone:
                span.fail("client gone")
                return
            except Exception as error:
                answer = answer_to(error)
                if answer.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
                    log.exception("a request failed")
                    span.fail(type(error).__name__)
                span.set({"http.response.status_code": answer.status_code})
                await answer(scope, receive, send)
                return
        length = (b"content-length", b"%d" % len(body))
        head = [(b"content-type", b"application/json"), length, *_encoded(headers)]
        await send({"type": "http.response.start", "status": 201, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _accept(
        self, sent: Mapping[bytes, bytes], receive: Receive, span: Span
    ) -> tuple[Mapping[str, str], bytes]:
        """Headers and body of the 201, once the notification is stored durably."""
        # The key is asked for before the body is read.
        access, headers = await self._gateway.door.admit(_text(sent.get(b"authorization")))
        require(access, Scope.SEND)
        request = _read(await _body(receive), _text(sent.get(b"content-type")) or "")
        key = _idempotency_key(sent)
        claim = None if key is None else Claim(access.tenant, key, body_hash(request))
        notification = new_notification(request, access.tenant, span.traceparent)
        answer = await self._gateway.intake.accept(notification, claim)
        if answer.replayed:
            headers = {**headers, "Idempotent-Replayed": "true"}
        elif self._gateway.tracing.on:
            span.set({"http.response.status_code": HTTPStatus.CREATED, "notify.notification_id": notification.id})
        return headers, answer.told.encode()


class ClientGone(Exception):
    """Nobody waits for the answer."""


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        body += part
        if not message.get("more_body"):
            return body


def _read(body: bytes, content_type: str) -> NotificationRequest:
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
    subtype = content_type.partition(";")[0].strip().lower()
    try:
        is_json = subtype == "application/json" or (subtype.startswith("application/") and subtype.endswith("+json"))
        content = read_json(body) if is_json else body
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "", "ctx": {"error": error.msg}}
        raise RequestValidationError([problem]) from None
    try:
        return NotificationRequest.model_validate(content)
    except ValidationError as error:
        raise RequestValidationError(_located(error, "body")) from None


def _idempotency_key(headers: Mapping[bytes, bytes]) -> str | None:
    given = headers.get(b"idempotency-key")
    if given is None:
        return None
    try:
        return IDEMPOTENCY_KEY.validate_python(_text(given))
    except ValidationError as error:
        raise RequestValidationError(_located(error, "header", "idempotency-key")) from None


def _located(error: ValidationError, *location: str) -> list[dict[str, Any]]:
    return [{**problem, "loc": (*location, *problem["loc"])} for problem in error.errors(include_url=False)]


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _encoded(headers: Mapping[str, str]) -> Iterable[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
