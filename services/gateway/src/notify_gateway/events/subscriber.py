"""An event subscriber and the bytes waiting to be written to its connection."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from notify_gateway.events.history import EventFilter
from notify_gateway.events.server_sent import take_write

log = logging.getLogger(__name__)

MAX_WAITING_BYTES = 4 * 1024 * 1024  # limits the memory that a slow subscriber uses


class Subscriber:
    """A bounded queue of chunks for one connection, which `abort` closes."""

    def __init__(self, event_filter: EventFilter, abort: Callable[[], None]) -> None:
        self.event_filter = event_filter
        self.abort = abort
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def next(self) -> bytes | None:
        """Return the next bytes to write, or None at the end of the stream."""
        while not self._chunks:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        written = take_write(self._chunks)
        self._waiting_bytes -= len(written)
        return written

    def push(self, chunk: bytes) -> None:
        """Queue a chunk; drop the subscriber if its queue is full. It can reconnect and replay what it missed."""
        if self._ended:
            return
        if self._waiting_bytes + len(chunk) > MAX_WAITING_BYTES:
            self._chunks.clear()
            self.end()
            self.drop()
        else:
            self._waiting_bytes += len(chunk)
            self._chunks.append(chunk)
            self._changed.set()

    def drop(self) -> None:
        """Close the connection of a client that reads too slowly."""
        log.info("dropping an event subscriber that reads too slowly", extra={"tenant": self.event_filter.tenant})
        self.abort()

    def end(self) -> None:
        """End the stream after the queued chunks."""
        self._ended = True
        self._changed.set()
