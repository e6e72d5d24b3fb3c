"""uvicorn's HTTP/1.1 protocol, with limits on the request headers, and on the memory for request bodies."""

from asyncio import TimerHandle, Transport

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from notify_gateway.http.middleware import BODY, MAX_HEAD, TRANSPORT, ArrivingBody, BodyMemory

HEAD_TIMEOUT = 10.0  # seconds


class LimitedHttpProtocol(HttpToolsProtocol):
    """Closes connections whose request headers are too long or arrive too slowly; uvicorn limits neither.

    uvicorn also buffers 64 KiB of a body for each connection, however many there are. Bodies are therefore counted
    as they arrive.
    """

    _body_memory = BodyMemory()  # shared by all connections
    _body: ArrivingBody
    _reading_head = True
    _head_bytes = 0
    _head_timer: TimerHandle | None = None

    @override
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        for queued, _ in self.pipeline:  # these requests will never be handled
            queued.scope[BODY].release()  # type: ignore[literal-required]  # as below
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes += len(data)
        if self._reading_head and self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The headers are longer than {MAX_HEAD} bytes.")

    @override
    def on_message_begin(self) -> None:
        self._start_head_timer()
        super().on_message_begin()
        self._body = ArrivingBody(self._body_memory)
        self.scope[TRANSPORT] = self.transport  # type: ignore[literal-required]  # servers may add their own keys
        self.scope[BODY] = self._body  # type: ignore[literal-required]  # as above

    @override
    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        if self.url[:1] not in b"/*":
            self._name_target_as_host()
        super().on_headers_complete()

    @override
    def on_body(self, body: bytes) -> None:
        if self._body.admit(len(body)):
            super().on_body(body)
        else:
            self.cycle.message_event.set()  # wakes up the request, which then fails

    def _name_target_as_host(self) -> None:
        """Replace the host by that of an absolute request target, as RFC 9112, section 3.2.2, demands."""
        target = httptools.parse_url(self.url)
        if target.host is None:
            return
        host = b"[%b]" % target.host if b":" in target.host else target.host
        authority = host if target.port is None else b"%b:%d" % (host, target.port)
        named = [(name, authority if name == b"host" else value) for name, value in self.headers]
        if self.parser.get_http_version() == "1.0" and not any(name == b"host" for name, _ in named):
            named.append((b"host", authority))
        self.headers[:] = named

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._reading_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.close)

    def _stop_head_timer(self) -> None:
        self._reading_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
