"""ASGI middleware: limits and checks for each request, security headers and request metrics."""

import asyncio
import re
import time
from collections.abc import Callable

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars
from uvicorn.protocols.http.flow_control import FlowControl

from notify_gateway.http.arriving_body import BODY, ArrivingBody
from notify_gateway.http.deprecation import deprecation_headers
from notify_gateway.http.origin import OriginCheck, Refusal
from notify_gateway.http.problems import problem_response
from notify_gateway.http.request_id import HEADER as REQUEST_ID_HEADER
from notify_gateway.http.request_id import REQUEST_ID, request_id
from notify_gateway.http.turns import TenantOf, Turns

MAX_BODY = 256 * 1024  # bytes
MAX_HEAD = 16 * 1024  # bytes
MAX_PATH = 1_000  # characters; a user's id has 200 at most, and matching a longer path with all routes takes long
MAX_PARAMETERS = 50  # in the query
BODY_TIMEOUT = 20.0  # seconds
REQUEST_TIMEOUT = 30.0  # seconds, including the body
SLICE = 64 * 1024  # bytes of a response that are written at once

SECURITY_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]

CLOSE = b"connection", b"close"
READING = frozenset({"GET", "HEAD"})  # the methods of static files
BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
CHECKED_HEADERS = BODY_HEADERS | {b"host", b"origin", b"sec-fetch-site", REQUEST_ID_HEADER}
TOO_MANY_PARAMETERS = 400, f"The query has more than {MAX_PARAMETERS} parameters."
# The routes' `$` would also match before a final line feed. Bytes that are not UTF-8 have become U+FFFD.
NOT_IN_PATHS = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd]")
INVALID_PATH = 404, f"The path has more than {MAX_PATH} characters, contains a control character, or is not UTF-8."

ObserveRequest = Callable[[str, str, int, float], None]
"""A callback with the method, the route, the status and the duration in seconds."""
UNKNOWN = "none"
"""The method and route that are reported for a request that matched no route."""
TRANSPORT = "notify.transport"
"""The scope key of the connection's transport. Only our own HTTP server sets it."""
FLOW = "notify.flow"
"""The scope key of the connection's `FlowControl`. Only our own HTTP server sets it."""
UNSENT = "notify.unsent"
"""The scope key of the size in bytes of a long response, until its last slice is written."""
UNLIMITED = "notify.unlimited"
"""The scope key of a function that lifts the time limit of the response."""


class LimitsMiddleware:
    """Enforces limits on each request, and reports its method, route, status and duration."""

    def __init__(
        self,
        app: ASGIApp,
        observe_request: ObserveRequest,
        origin_check: OriginCheck,
        *,
        tenant_of: TenantOf = lambda _: None,
        body_timeout: float = BODY_TIMEOUT,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self._app = app
        self._observe_request = observe_request
        self._origin_check = origin_check
        self._body_timeout = body_timeout
        self._request_timeout = request_timeout
        self._turns = Turns(tenant_of)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        flow: FlowControl | None = scope.get(FLOW)
        if flow is not None and flow.write_paused:
            # The client has not read its last response yet. The next response would wait in our memory as well, without
            # being counted (`slow_readers.py`). If the client takes too long to read, its connection is closed.
            await flow.drain()
        began = time.perf_counter()
        if not await self._turns.begin(scope, scope.get(TRANSPORT)):
            await _end_unanswered(scope, receive)
            return
        receive = self._in_turns(scope, receive)
        request = _LimitedRequest(scope, receive, send, self._request_timeout, self._origin_check)
        try:
            if request.refusal is not None:
                await problem_response(*request.refusal)(scope, receive, request.send)
                return
            try:
                # One timer enforces both time limits: it is rescheduled when the body is complete.
                timeout = self._request_timeout if request.complete else self._body_timeout
                async with asyncio.timeout(timeout) as request.limit:
                    await self._app(scope, request.receive, request.send)
            except TimeoutError:
                if request.status:
                    await request.disconnect()
                    return
                if request.complete:
                    too_slow = problem_response(503, "The request timed out. It may still have been accepted.")
                else:
                    too_slow = problem_response(408, f"The body did not arrive within {self._body_timeout:g} s.")
                await too_slow(scope, receive, request.send)
        finally:
            # This breaks a reference cycle that otherwise only the garbage collector would free.
            scope.pop(UNLIMITED, None)
            if request.body is not None:
                request.body.release()
            # Event streams are not reported, because their duration says nothing about speed.
            if not request.unlimited:
                # Requests are labelled with their route instead of their path, because paths contain ids, and only with
                # methods of the route, because clients could otherwise create any number of time series.
                route = scope.get("route")
                path = getattr(route, "path", UNKNOWN)
                methods = frozenset() if route is None else getattr(route, "methods", READING)
                method = scope["method"] if scope["method"] in methods else UNKNOWN
                self._observe_request(method, path, request.status, time.perf_counter() - began)

    def _in_turns(self, scope: Scope, receive: Receive) -> Receive:
        """Return a function that passes on each part of the body in a turn, because very many may arrive at once."""
        body: ArrivingBody | None = scope.get(BODY)
        if body is None or body.arrived:
            return receive

        async def receive_in_turn() -> Message:
            message = await receive()
            if message.get("more_body") and (flow := scope.get(FLOW)) is not None:
                flow.pause_reading()  # until the next part is received; many small ones would take up all turns
            if message["type"] == "http.request" and not await self._turns.begin(scope, scope.get(TRANSPORT)):
                return await _await_disconnect(receive)
            return message

        return receive_in_turn


async def _end_unanswered(scope: Scope, receive: Receive) -> None:
    """Free the body of a request whose client has left, and wait until the connection has ended."""
    body: ArrivingBody | None = scope.get(BODY)
    if body is not None:
        body.release()
    await _await_disconnect(receive)


async def _await_disconnect(receive: Receive) -> Message:
    """Wait until the connection has ended."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


class _LimitedRequest:
    """The progress of one request: what its headers say, the size of its body, and the status of its response."""

    __slots__ = (
        "_deadline", "_deprecation", "_receive", "_received", "_scope", "_send", "_transport",
        "body", "complete", "id", "limit", "refusal", "status", "unlimited",
    )  # fmt: skip
    limit: asyncio.Timeout

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout: float, origin_check: OriginCheck) -> None:
        self.body: ArrivingBody | None = scope.get(BODY)
        self._scope = scope
        self._receive = receive
        self._send = send
        self._transport: asyncio.Transport | None = scope.get(TRANSPORT)
        self._deprecation = deprecation_headers(scope["path"])
        self._received = self.status = 0
        self.complete = True
        head = hosts = 0
        checked: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            head += len(name) + len(value)
            if name not in CHECKED_HEADERS:
                continue
            checked[name] = value
            if name == b"host":
                hosts += 1
            elif name in BODY_HEADERS and (value != b"0" or name == b"transfer-encoding"):
                self.complete = False
        scope[REQUEST_ID] = self.id = request_id(checked.get(REQUEST_ID_HEADER))
        bind_contextvars(request_id=self.id)
        self.refusal: Refusal | None
        if head > MAX_HEAD:
            self.refusal = 431, f"The headers are longer than {MAX_HEAD} bytes."
        elif len(scope["path"]) > MAX_PATH or NOT_IN_PATHS.search(scope["path"]):
            self.refusal = INVALID_PATH
        elif scope["query_string"].count(b"&") >= MAX_PARAMETERS:
            self.refusal = TOO_MANY_PARAMETERS
        else:
            self.refusal = origin_check.refusal(
                scope["method"],
                scope["http_version"],
                hosts,
                checked.get(b"host", b""),
                checked.get(b"origin"),
                checked.get(b"sec-fetch-site"),
            )
        self._deadline = asyncio.get_running_loop().time() + timeout
        self.unlimited = False
        scope[UNLIMITED] = self.lift_time_limit

    async def receive(self) -> Message:
        message = await self._receive()
        if self.complete:  # after the body, the only possible message is a disconnect
            return message
        if self.status:
            if self.body is not None:
                self.body.free()  # nobody reads a body after the response has begun
            return message
        self._received += len(message.get("body", b""))
        if self._received > MAX_BODY:
            raise HTTPException(413, f"The body is longer than {MAX_BODY} bytes.")
        if self.body is not None and self.body.refusal is not None:
            raise HTTPException(*self.body.refusal)
        if not message.get("more_body", False):
            self.complete = True
            if self.body is not None:
                self.body.read()
                if self.body.refusal is not None:
                    raise HTTPException(*self.body.refusal)
            if not self.unlimited:
                self.limit.reschedule(self._deadline)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = headers = [
                *message.get("headers", ()),
                *SECURITY_HEADERS,
                (REQUEST_ID_HEADER, self.id.encode()),
                *self._deprecation,
            ]
            if self.body is not None and not self.body.arrived:
                headers.append(CLOSE)  # nobody may read the rest of the request
            if self.body is not None and not self.unlimited:
                self.body.release()  # the client may take long to read the response
        elif len(message.get("body", b"")) > SLICE:
            await self._send_in_slices(message)
            return
        await self._send(message)

    async def _send_in_slices(self, message: Message) -> None:
        """Send a long body in slices, and count all of it until the last slice is written.

        The transport keeps the data of a write in memory until all of it is sent, but counts only the part that is not
        sent yet.
        """
        body, part = message["body"], {**message, "more_body": True}
        last = (len(body) - 1) // SLICE * SLICE
        self._scope[UNSENT] = len(body)
        for start in range(0, last, SLICE):
            await self._send({**part, "body": body[start : start + SLICE]})
        await self._send({**part, "body": b""})  # sends nothing, but waits until the last slice can be written
        del self._scope[UNSENT]
        await self._send({**message, "body": body[last:]})

    async def disconnect(self) -> None:
        """Close the connection, because the client took too long to read the response."""
        if self._transport is None:
            raise TimeoutError
        self._transport.abort()
        await _await_disconnect(self._receive)

    def lift_time_limit(self) -> None:
        self.unlimited = True
        self.limit.reschedule(None)
