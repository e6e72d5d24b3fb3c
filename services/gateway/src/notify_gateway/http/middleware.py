"""ASGI middleware: limits on the size and duration of a request, security headers and request metrics."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from notify_gateway.http.problems import problem_response

MAX_BODY = 256 * 1024  # bytes
MAX_BODIES = 32 * 1024 * 1024  # bytes, of all requests in progress together
MAX_HEAD = 16 * 1024  # bytes
BODY_TIMEOUT = 20.0  # seconds
REQUEST_TIMEOUT = 30.0  # seconds, including the body

SECURITY_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]

BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})

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


@dataclass(slots=True)
class BodyMemory:
    """The memory that the bodies of all requests in progress take together."""

    bytes: int = 0


class ArrivingBody:
    """The part of a request's body that is in memory, from its arrival until the end of the request."""

    __slots__ = ("_bytes", "_memory", "refused")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._bytes = 0
        self.refused = False

    def admit(self, size: int) -> bool:
        """Count `size` bytes that have arrived; if all bodies together take too much memory, refuse this one."""
        if self.refused or self._memory.bytes + size > MAX_BODIES:
            self.refused = True
            return False
        self._memory.bytes += size
        self._bytes += size
        return True

    def free(self) -> None:
        """Stop counting what has arrived, because it is no longer in memory."""
        self._memory.bytes -= self._bytes
        self._bytes = 0

    def release(self) -> None:
        """Free the memory, and refuse what arrives later."""
        self.free()
        self.refused = True


class LimitsMiddleware:
    """Enforces limits on each request, and reports its method, route, status and duration."""

    def __init__(
        self,
        app: ASGIApp,
        observe_request: ObserveRequest,
        *,
        body_timeout: float = BODY_TIMEOUT,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self._app = app
        self._observe_request = observe_request
        self._body_timeout = body_timeout
        self._request_timeout = request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request = time.perf_counter(), _LimitedRequest(scope, receive, send, self._request_timeout)
        try:
            if request.head > MAX_HEAD:
                too_long = problem_response(431, f"The headers are longer than {MAX_HEAD} bytes.")
                await too_long(scope, receive, request.send)
                return
            try:
                # One timer enforces both time limits: it is rescheduled when the body is complete.
                timeout = self._request_timeout if request.complete else self._body_timeout
                async with asyncio.timeout(timeout) as request.limit:
                    await self._app(scope, request.receive, request.send)
            except TimeoutError:
                if request.status:
                    raise
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
                # Requests are labelled with their route instead of their path, because paths contain ids.
                route = getattr(scope.get("route"), "path", None)
                method, seconds = scope["method"] if route else UNKNOWN, time.perf_counter() - began
                self._observe_request(method, route or UNKNOWN, request.status, seconds)


class _LimitedRequest:
    """The progress of one request: the size of its headers and body, and the status of its response."""

    __slots__ = (
        "_deadline", "_receive", "_received", "_send", "body", "complete", "head", "limit", "status", "unlimited"
    )  # fmt: skip
    limit: asyncio.Timeout

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout: float) -> None:
        self.body: ArrivingBody | None = scope.get(BODY)
        self._receive = receive
        self._send = send
        self._received = self.head = self.status = 0
        self.complete = True
        for name, value in scope["headers"]:
            self.head += len(name) + len(value)
            if name in BODY_HEADERS and value != b"0":
                self.complete = False
        self._deadline = asyncio.get_running_loop().time() + timeout
        self.unlimited = False
        scope[UNLIMITED] = self.lift_time_limit

    async def receive(self) -> Message:
        message = await self._receive()
        if self.complete:  # after the body, the only possible message is a disconnect
            return message
        self._received += len(message.get("body", b""))
        if self._received > MAX_BODY:
            raise HTTPException(413, f"The body is longer than {MAX_BODY} bytes.")
        if self.body is not None and self.body.refused:
            raise HTTPException(503, "Too many large requests are in progress.")
        if self.body is not None and self.unlimited:
            self.body.free()  # a stream may never end, and it discards the body
        if not message.get("more_body", False):
            self.complete = True
            if not self.unlimited:
                self.limit.reschedule(self._deadline)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
        await self._send(message)

    def lift_time_limit(self) -> None:
        self.unlimited = True
        self.limit.reschedule(None)
