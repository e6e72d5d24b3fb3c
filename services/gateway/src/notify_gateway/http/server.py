"""uvicorn's HTTP/1.1 protocol, with limits on connections, on what surrounds request bodies, and on their memory."""

import sys
from asyncio import TimerHandle, Transport
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, ClassVar, cast

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from notify_gateway.http.arriving_body import BODY, ArrivingBody, BodyMemory
from notify_gateway.http.closing import LingeringTransport
from notify_gateway.http.middleware import FLOW, MAX_HEAD, TRANSPORT, UNSENT
from notify_gateway.http.open_files import available_files
from notify_gateway.http.request_head import HEADER_SIZE, memory_of, with_host_of_target, without_upgrade
from notify_gateway.http.slow_readers import PIPELINING, SlowReaders, group_of

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

HEAD_TIMEOUT = 10.0  # seconds
MAX_HEADS = 8 * 1024 * 1024  # bytes, of all heads that are unfinished or wait in a pipeline together
MAX_HEADERS = 100  # per request
# All bytes of a request that are not part of its body: the head, chunk headers and trailers. Each chunk counts as some
# more, because it takes a microsecond. This leaves room for a body of 100 KiB in chunks of 100 bytes.
MAX_OUTSIDE_BODY = 24 * 1024  # bytes
CHUNK_SIZE = 12  # bytes, besides its header
MAX_PIPELINED = 16  # requests that wait on one connection
# This leaves room for 5,000 requests that wait for their commit, 1,000 event subscribers and 2,000 idle connections.
# Each takes about 11 KiB.
MAX_CONNECTIONS = 8_000  # per port
MAX_UNREAD = 16 * 1024  # bytes that we hold for a client that does not read, before its responses have to wait
TOO_MANY_HEADERS = f"There are more than {MAX_HEADERS} headers."
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
PIPELINED_BODY = 503, "Send a request with a body only after the response to the request before it."
TRAILERS: deque[tuple[bytes, bytes]] = deque(maxlen=0)  # discards what is appended
FORGOTTEN = cast("HTTPScope", {})  # replaces the scope of a request that has been answered
HEAD_SIZE = "notify.head_size"
"""The scope key of the bytes that are counted for a request that waits in a pipeline."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """Closes connections that send too much besides bodies, or send it too slowly; uvicorn limits neither.

    uvicorn also buffers 64 KiB of a body for each connection, however many there are. Bodies are therefore counted
    as they arrive. Trailers are discarded, because uvicorn would take them for headers (RFC 9110, section 6.5.1).
    """

    _connections: ClassVar[Counter[int | None]] = Counter()  # the open connections of each port
    # The connections of each port that have no request in progress; the one that has waited longest comes first.
    _waiting: ClassVar[defaultdict[int | None, dict["LimitedHttpProtocol", None]]] = defaultdict(dict)
    _slow_readers = SlowReaders()  # shared by all connections
    _body_memory, _head_memory = BodyMemory(), BodyMemory()  # as above
    transport: LingeringTransport  # type: ignore[assignment]  # it has all methods that uvicorn calls
    _body: ArrivingBody
    _handled: RequestResponseCycle | None = None  # uvicorn's `cycle` is the last request, which may still be queued
    _reading_head = True
    _outside_body = 0  # bytes of the request that is being read
    _held = 0  # bytes of an unfinished head, as counted in `_head_memory`
    _part = _unparsed = b""  # what the parser is given now, and what it has to be given next
    _head_timer: TimerHandle | None = None

    @override
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._socket = transport
        transport.set_write_buffer_limits(MAX_UNREAD)
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type]  # as above
        self._port = self.server[1] if self.server is not None else None
        self._connections[self._port] += 1
        self._waiting_here = self._waiting[self._port]
        if self._connections[self._port] > min(MAX_CONNECTIONS, available_files()):
            if not self._waiting_here:
                self.transport.write(UNAVAILABLE)
                self.transport.close_at_once()
                return
            # Otherwise one client could keep all others out with connections on which it requests nothing.
            next(iter(self._waiting_here)).give_up()
        self._waiting_here[self] = None
        self._start_head_timer()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._connections[self._port] -= 1
        self._stop_head_timer()
        self._release_head()
        self._slow_readers.discard(self)
        self._waiting_here.pop(self, None)
        for queued, _ in self.pipeline:  # these requests will never be handled
            queued.scope[BODY].release()  # type: ignore[literal-required]  # as below
            self._release_queued_head(queued.scope)
        super().connection_lost(exc)
        if self._handled is not None and not self._handled.response_complete:
            self._handled.disconnected = True
            self._handled.message_event.set()
        self.transport.lost()

    @override
    def eof_received(self) -> None:
        self.transport.limit_flush()  # the event loop now closes the connection after what was written is sent

    @override
    def pause_writing(self) -> None:
        scope = FORGOTTEN if self.cycle is None else self.cycle.scope
        self._slow_readers.add(self, self.unread_bytes, PIPELINING if self.pipeline else group_of(scope))
        self.transport.limit_flush()
        super().pause_writing()

    @override
    def resume_writing(self) -> None:
        self._slow_readers.discard(self)
        self.transport.lift_flush_limit()
        super().resume_writing()

    @property
    def unread_bytes(self) -> int:
        """The bytes that wait in our memory until the client reads."""
        unsent = 0 if self._handled is None else cast("int", self._handled.scope.get(UNSENT, 0))
        return self._socket.get_write_buffer_size() + unsent

    def give_up(self) -> None:
        """Close the connection without sending what has been written."""
        self._slow_readers.discard(self)
        self._waiting_here.pop(self, None)
        self._socket.abort()

    @override
    def data_received(self, data: bytes) -> None:
        if len(data) <= MAX_HEAD:
            self._receive(data)
            return
        # The parser does not say where in the data a request begins. A pipelined one is counted from the next part on.
        for start in range(0, len(data), MAX_HEAD):
            self._receive(data[start : start + MAX_HEAD])

    def _receive(self, data: bytes) -> None:
        if self.transport.discarding:
            self.transport.discard(len(data))
            return
        if self._head_timer is None and not self.transport.client_sends:
            self._start_head_timer()  # even empty lines must not keep a connection open
        self._outside_body += len(data)
        self._unparsed = data
        while self._unparsed and not self.transport.discarding:
            self._part, self._unparsed = self._unparsed, b""
            super().data_received(self._part)
        self._part = b""
        if self._reading_head:
            if self._outside_body > MAX_HEAD:
                self._refuse(400, f"The headers are longer than {MAX_HEAD} bytes.")
            elif self.transport.client_sends:
                self._hold_head()
                if len(self.headers) > MAX_HEADERS:
                    self._refuse(400, TOO_MANY_HEADERS)
        elif self._outside_body > MAX_OUTSIDE_BODY:
            self._refuse(431, f"The headers, chunk headers and trailers are longer than {MAX_OUTSIDE_BODY} bytes.")

    @override
    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests are pipelined")  # uvicorn then calls `send_400_response`
        if self._head_timer is None:
            self._start_head_timer()
        self.transport.client_sends = self._reading_head = True
        super().on_message_begin()
        self._body = ArrivingBody(self._body_memory)
        ours = {TRANSPORT: self._socket, FLOW: self.flow, BODY: self._body}
        self.scope.update(ours)  # type: ignore[typeddict-item]  # servers may add their own keys

    @override
    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("CONNECT")  # uvicorn then calls `send_400_response`
            return  # the parser has stopped before the body; see `_unsupported_upgrade_warning`
        if len(self.headers) > MAX_HEADERS:
            self._refuse(400, TOO_MANY_HEADERS)
            raise ValueError(TOO_MANY_HEADERS)  # ends the parser
        if self.url[:1] not in b"/*":
            self.headers[:] = with_host_of_target(self.url, self.parser.get_http_version(), self.headers)
        super().on_headers_complete()
        self._waiting_here.pop(self, None)
        self._stop_head_timer()
        self._release_head()
        self._reading_head = False
        if self._is_queued():
            self._hold_queued_head()
        else:
            self._handled = self.cycle
        self.headers = TRAILERS  # type: ignore[assignment]  # only `append` is called

    @override
    def on_body(self, body: bytes) -> None:
        self._outside_body += CHUNK_SIZE - len(body)
        if self._is_queued():
            self._body.refusal = PIPELINED_BODY
        if self._body.admit(len(body), self.cycle):
            super().on_body(body)
        else:
            self.cycle.message_event.set()  # wakes up the request, which then fails

    @override
    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._outside_body = 0
        self._body.arrived, self.transport.client_sends, self._reading_head = True, False, True
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        if self.cycle.response_complete:
            if self.cycle.more_body:
                self.transport.close()  # nobody is going to read the rest of the request
            # An idle connection must not keep its last request in memory.
            if self.scope is self.cycle.scope:
                self.scope, self.url = FORGOTTEN, b""
            self.cycle.scope = FORGOTTEN
            self.cycle.body.clear()
            self._waiting_here[self] = None
        elif not self.transport.is_closing():
            self._handled, _ = self.pipeline[-1]  # uvicorn starts this request next
            self._release_queued_head(self._handled.scope)
        super().on_response_complete()

    @override
    def shutdown(self) -> None:
        """Close the connection, unless the head of a request is arriving on it, whose response will close it."""
        if not self.transport.client_sends or self.transport.discarding or not self._reading_head:
            super().shutdown()

    @override
    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    @override
    def _unsupported_upgrade_warning(self) -> None:
        # The parser takes the body of such a request for the next one, so it parses the request again without Upgrade.
        # uvicorn calls this method while it handles the parser's error, which says where the body begins.
        error = sys.exception()
        assert error is not None  # noqa: S101 - see above
        head = without_upgrade(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
        self._unparsed = head + self._part[error.args[0] :]

    @override
    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _refuse(self, status: int, detail: str) -> None:
        """Read no more requests from this connection, and respond with this error unless a response has begun."""
        if self.transport.discarding or self.transport.is_closing():
            return
        self.transport.discarding = self.transport.client_sends = True
        self._stop_head_timer()
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(detail)
            return
        # The connection is closed after the response to the last request that could be read.
        self.cycle.keep_alive = False
        if not self._reading_head:
            self._body.refusal = status, detail
            self.cycle.message_event.set()

    def _hold_head(self) -> None:
        size = self._outside_body + len(self.headers) * HEADER_SIZE
        self._head_memory.bytes += size - self._held
        self._held = size
        if self._head_memory.bytes > MAX_HEADS:
            self.transport.close_at_once()

    def _release_head(self) -> None:
        self._head_memory.bytes -= self._held
        self._held = 0

    def _is_queued(self) -> bool:
        """Return whether the request that is being read waits for the response to an earlier one."""
        return bool(self.pipeline) and self.pipeline[0][0] is self.cycle

    def _hold_queued_head(self) -> None:
        size = memory_of(self.url, self.headers)
        self.scope[HEAD_SIZE] = size  # type: ignore[literal-required]  # as above
        self._head_memory.bytes += size
        if self._head_memory.bytes > MAX_HEADS:
            self.transport.close_at_once()

    def _release_queued_head(self, scope: "HTTPScope") -> None:
        self._head_memory.bytes -= scope[HEAD_SIZE]  # type: ignore[literal-required]  # as above

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._end_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_head(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close_at_once()
        else:
            self._start_head_timer()  # the response to an earlier request is still in progress
