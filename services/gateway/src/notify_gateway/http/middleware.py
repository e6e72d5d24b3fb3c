"""ASGI middleware: limits and checks for each request, security headers and request metrics."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from notify_gateway.http.origin import OriginCheck, Refusal
from notify_gateway.http.problems import problem_response

MAX_BODY = 256 * 1024  # bytes
MAX_BODIES = 32 * 1024 * 1024  # bytes, of all requests in progress together
MAX_HEAD = 16 * 1024  # bytes
MAX_PARAMETERS = 50  # in the query
BODY_TIMEOUT = 20.0  # seconds
REQUEST_TIMEOUT = 30.0  # seconds, including the body

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
CHECKED_HEADERS = BODY_HEADERS | {b"host", b"origin", b"sec-fetch-site"}
TOO_LARGE = 503, "Too many large requests are in progress."
TOO_MANY_PARAMETERS = 400, f"The query has more than {MAX_PARAMETERS} parameters."
UNPRINTABLE = 404, "The path contains a character that is not printable."

ObserveRequest = Callable[[str, str, int, float], None]
"""A callback with the method, the route, the status and the duration in seconds."""
UNKNOWN = "none"
"""The method and route that are reported for a request that matched no route."""
TRANSPORT = "notify.transport"
"""The scope key of the connection's transport. Only our own HTTP server sets it."""
BODY = "notify.body"
"""The scope key of the request's `ArrivingBody`. Only our own HTTP server sets it."""
UNLIMITED = "notify.unlimited"
"""The scope key of a function that lifts the time limit of the response."""


class BodyBuffer(Protocol):
    """The part of a request's body that the HTTP server has not passed on yet."""

    body: bytearray
    message_event: asyncio.Event


class BodyMemory:
    """The memory that the bodies of all requests in progress take together."""

    __slots__ = ("bytes", "unread")

    def __init__(self) -> None:
        self.bytes = 0
        self.unread: OrderedDict[ArrivingBody, None] = OrderedDict()
        """The bodies of which the application has not read the end, oldest first."""


class ArrivingBody:
    """The part of a request's body that is in memory, from its arrival until the response begins."""

    __slots__ = ("_buffer", "_bytes", "_memory", "arrived", "refusal")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._bytes = 0
        self._buffer: BodyBuffer | None = None
        self.arrived = False
        """Whether the whole request has arrived."""
        self.refusal: Refusal | None = None
        """The error that the request gets instead of the rest of its body."""

    def admit(self, size: int, buffer: BodyBuffer) -> bool:
        """Count `size` bytes that have arrived for `buffer`; return False if they are not to be kept.

        If all bodies together take too much memory, refuse those that have been arriving for longest. So bodies that
        do not end, or that wait behind another request, keep nobody else's requests out.
        """
        if self.refusal is not None:
            return False
        memory = self._memory
        if self._buffer is None:
            self._buffer = buffer
            memory.unread[self] = None
        memory.bytes += size
        self._bytes += size
        while memory.bytes > MAX_BODIES and memory.unread:
            next(iter(memory.unread)).give_way()
        return self.refusal is None

    def read(self) -> None:
        """Note that the application has read the whole body, which is then kept until the response begins."""
        if self._buffer is not None:
            del self._memory.unread[self]
            self._buffer = None  # this also breaks a reference cycle

    def free(self) -> None:
        """Stop counting what has arrived, because it is no longer in memory."""
        self.read()
        self._memory.bytes -= self._bytes
        self._bytes = 0

    def release(self) -> None:
        """Free the memory, and refuse what arrives later."""
        if self._buffer is not None:
            self._buffer.body = bytearray()
        self.free()
        self.refusal = TOO_LARGE

    def give_way(self) -> None:
        """Free the memory, and wake up the request, which then fails."""
        buffer = self._buffer
        self.release()
        if buffer is not None:
            buffer.message_event.set()


class LimitsMiddleware:
    """Enforces limits on each request, and reports its method, route, status and duration."""

    def __init__(
        self,
        app: ASGIApp,
        observe_request: ObserveRequest,
        origin_check: OriginCheck,
        *,
        body_timeout: float = BODY_TIMEOUT,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self._app = app
        self._observe_request = observe_request
        self._origin_check = origin_check
        self._body_timeout = body_timeout
        self._request_timeout = request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
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


class _LimitedRequest:
    """The progress of one request: what its headers say, the size of its body, and the status of its response."""

    __slots__ = (
        "_deadline", "_receive", "_received", "_send", "_transport",
        "body", "complete", "limit", "refusal", "status", "unlimited",
    )  # fmt: skip
    limit: asyncio.Timeout

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout: float, origin_check: OriginCheck) -> None:
        self.body: ArrivingBody | None = scope.get(BODY)
        self._receive = receive
        self._send = send
        self._transport: asyncio.Transport | None = scope.get(TRANSPORT)
        self._received = self.status = 0
        self.complete = True
        head = hosts = 0
        host, origin, site = b"", None, None
        for name, value in scope["headers"]:
            head += len(name) + len(value)
            if name not in CHECKED_HEADERS:
                continue
            if name == b"host":
                hosts += 1
                host = value
            elif name in BODY_HEADERS:
                if value != b"0":
                    self.complete = False
            elif name == b"origin":
                origin = value
            else:
                site = value
        self.refusal: Refusal | None
        if head > MAX_HEAD:
            self.refusal = 431, f"The headers are longer than {MAX_HEAD} bytes."
        elif not scope["path"].isprintable():
            self.refusal = UNPRINTABLE  # the routes' `$` would also match before a final line feed
        elif scope["query_string"].count(b"&") >= MAX_PARAMETERS:
            self.refusal = TOO_MANY_PARAMETERS
        else:
            self.refusal = origin_check.refusal(scope["method"], scope["http_version"], hosts, host, origin, site)
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
            if not self.unlimited:
                self.limit.reschedule(self._deadline)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = headers = [*message.get("headers", ()), *SECURITY_HEADERS]
            if self.body is not None and not self.body.arrived:
                headers.append(CLOSE)  # nobody may read the rest of the request
            if self.body is not None and not self.unlimited:
                self.body.release()  # the client may take long to read the response
        await self._send(message)

    async def disconnect(self) -> None:
        """Close the connection, because the client took too long to read the response."""
        if self._transport is None:
            raise TimeoutError
        self._transport.abort()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def lift_time_limit(self) -> None:
        self.unlimited = True
        self.limit.reschedule(None)
