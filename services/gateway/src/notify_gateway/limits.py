"""What one request may take: bytes of its head and body, and time; and the headers that every answer carries."""

import asyncio
import time
from asyncio import TimerHandle, Transport
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from notify_gateway.problems import answer_plainly

MAX_BODY = 256 * 1024  # bytes
MAX_HEAD = 16 * 1024  # bytes
HEAD_TIMEOUT = 10.0  # seconds
BODY_TIMEOUT = 20.0  # seconds
REQUEST_TIMEOUT = 30.0  # seconds, all in all

SECURITY_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]

ANNOUNCE_A_BODY = frozenset({b"content-length", b"transfer-encoding"})

AsgiScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[AsgiScope, Receive, Send], Awaitable[None]]


Answered = Callable[[str, str, int, float], None]
"""Takes method, route, status and seconds."""
NONE = "none"
ABORT = "notify.abort"
"""In the scope of a request: ends its connection at once, whatever is still to be written."""
UNLIMITED = "notify.unlimited"
"""In the scope of a request: its answer may take as long as the client likes."""


class Limits:
    """ASGI middleware around the application."""

    def __init__(
        self,
        app: App,
        answered: Answered,
        *,
        body_timeout: float = BODY_TIMEOUT,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self._app = app
        self._answered = answered
        self._body_timeout = body_timeout
        self._request_timeout = request_timeout

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request within its limits, and tell how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request = time.perf_counter(), _Request(scope, receive, send, self._request_timeout)
        try:
            if request.head > MAX_HEAD:
                too_long = answer_plainly(431, f"The headers are longer than {MAX_HEAD} bytes.")
                await too_long(scope, receive, request.send)
                return
            try:
                # One timer for both: it is set anew once the body has come.
                timeout = self._request_timeout if request.complete else self._body_timeout
                async with asyncio.timeout(timeout) as request.limit:
                    await self._app(scope, request.receive, request.send)
            except TimeoutError:
                if request.status:
                    raise
                too_slow = answer_plainly(503, "It took too long. The request may have been accepted.", retry_after=1)
                if not request.complete:
                    too_slow = answer_plainly(408, f"The body did not come within {self._body_timeout:g} s.")
                await too_slow(scope, receive, request.send)
        finally:
            scope.pop(UNLIMITED, None)  # of its cycle only the garbage collector would free it
            if not request.unlimited:  # how long somebody listens is nothing to be fast at
                # The route and not the path, which has ids.
                route = getattr(scope.get("route"), "path", None)
                method, seconds = scope["method"] if route else NONE, time.perf_counter() - began
                self._answered(method, route or NONE, request.status, seconds)


class _Request:
    """What has come of one request, and what has gone."""

    __slots__ = ("_deadline", "_receive", "_received", "_send", "complete", "head", "limit", "status", "unlimited")
    limit: asyncio.Timeout

    def __init__(self, scope: AsgiScope, receive: Receive, send: Send, timeout: float) -> None:
        self._receive = receive
        self._send = send
        self._received = self.head = self.status = 0
        self.complete = True
        for name, value in scope["headers"]:
            self.head += len(name) + len(value)
            if name in ANNOUNCE_A_BODY and value != b"0":
                self.complete = False
        self._deadline = asyncio.get_running_loop().time() + timeout
        self.unlimited = False
        scope[UNLIMITED] = self.without_limit

    async def receive(self) -> Message:
        message = await self._receive()
        if self.complete:  # this tells that the client is gone
            return message
        self._received += len(message.get("body", b""))
        if self._received > MAX_BODY:
            raise HTTPException(413, f"The body is longer than {MAX_BODY} bytes.")
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

    def without_limit(self) -> None:
        self.unlimited = True
        self.limit.reschedule(None)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which of itself would wait for ever for a head of any length."""

    _reading_head = True
    _head_bytes = 0
    _head_timer: TimerHandle | None = None

    @override
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes += len(data)
        if self._reading_head and self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The headers are longer than {MAX_HEAD} bytes.")

    @override
    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]  # servers may add theirs

    @override
    def on_headers_complete(self) -> None:
        self._head_has_come()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_has_come()
        self._reading_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._give_up)

    def _head_has_come(self) -> None:
        self._reading_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
