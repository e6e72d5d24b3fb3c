"""A transport that is closed so that the client gets its last response, and so that it cannot delay this for long."""

from asyncio import AbstractEventLoop, TimerHandle, Transport

LINGER_TIMEOUT = 2.0  # seconds
MAX_DISCARDED = 4 * 1024 * 1024  # bytes
FLUSH_TIMEOUT = 30.0  # seconds


class LingeringTransport:
    """The methods of a transport that uvicorn uses; `close` lingers while the client is still sending a request.

    If a connection is closed while data is on its way to us, the kernel resets it, and the client may lose a response
    that it has not read yet (RFC 9112, section 9.6). Therefore we first say that we will send no more. We then discard
    what arrives until the client closes the connection, for a limited time and up to a limited size.
    """

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.client_sends = False
        """True if the client has begun a request and not ended it."""
        self.discarding = False
        """True if data that arrives must be passed to `discard`."""
        self._transport = transport
        self._loop = loop
        self._head = b""  # the head of a response that is not sent yet
        self._lingering = False
        self._discarded = 0
        self._timer: TimerHandle | None = None
        self._flush_timer: TimerHandle | None = None

    def write(self, data: bytes) -> None:
        """Send the data. The head of a response waits for its body, if that follows at once.

        uvicorn writes them separately, but a system call for each would be costly.
        """
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._send_head)
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Return whether nothing more will be sent."""
        return self._lingering or self._transport.is_closing()

    def close(self) -> None:
        """Send what has been written, then close the connection, and linger if necessary."""
        self._send_head()
        if self.is_closing():
            return
        if self.client_sends:
            self.discarding = self._lingering = True
            self._transport.resume_reading()
            self._transport.write_eof()
            self._timer = self._loop.call_later(LINGER_TIMEOUT, self._close)
        else:
            self._close()

    def close_at_once(self) -> None:
        """Send what has been written, then close the connection without lingering."""
        self.client_sends = False
        self.close()

    def discard(self, size: int) -> None:
        """Count data that is discarded; close the connection if it is too much."""
        self._discarded += size
        if self._discarded > MAX_DISCARDED:
            self._close()

    def limit_flush(self) -> None:
        """Give the client `FLUSH_TIMEOUT` to read what was written, which may otherwise never happen."""
        self._send_head()
        if self._flush_timer is None:
            self._flush_timer = self._loop.call_later(FLUSH_TIMEOUT, self._transport.abort)

    def lift_flush_limit(self) -> None:
        """Let the client take its time again, unless the connection is being closed."""
        if self._flush_timer is not None and not self._transport.is_closing():
            self._flush_timer.cancel()
            self._flush_timer = None

    def lost(self) -> None:
        """Stop the timers, because the connection has ended."""
        for timer in (self._timer, self._flush_timer):
            if timer is not None:
                timer.cancel()

    def _send_head(self) -> None:
        if self._head and not self._transport.is_closing():
            head, self._head = self._head, b""
            self._transport.write(head)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.discarding = True
        self._transport.close()
        self.limit_flush()
