"""Event subscribers and the bytes waiting to be written to their connections."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain

from notify_gateway.events.history import EventFilter

log = logging.getLogger(__name__)

MAX_WAITING_BYTES = 4 * 1024 * 1024  # live events for one slow subscriber
MAX_UNSENT_BYTES = 32 * 1024 * 1024  # live and replayed events for all subscribers together
CHUNK_OVERHEAD = 128  # bytes that a chunk takes besides its data
QUEUE_OVERHEAD = 10  # bytes that a chunk takes in the queue of each subscriber
BYTES_PER_WRITE = 4 * 1024  # small, because each connection holds two copies of what it is writing


class Chunk:
    """Bytes to write, which may wait for several subscribers of one tenant."""

    __slots__ = ("data", "waits_for")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.waits_for = 0
        """The number of subscribers to which it has not been written yet."""


class UnsentMemory:
    """The memory of the chunks that wait for any of `subscribers`. The data of a chunk counts once for all of them."""

    def __init__(self) -> None:
        self.subscribers: set[Subscriber] = set()
        self._bytes = 0
        self._tenants: dict[str, int] = {}  # the part of `_bytes` that each tenant takes

    def add(self, chunk: Chunk, tenant: str) -> None:
        """Count a chunk that waits for one more subscriber of `tenant`."""
        self._count(tenant, QUEUE_OVERHEAD + (0 if chunk.waits_for else CHUNK_OVERHEAD + len(chunk.data)))
        chunk.waits_for += 1

    def remove(self, chunk: Chunk, tenant: str) -> None:
        """Count a chunk that waits for one fewer subscriber of `tenant`."""
        chunk.waits_for -= 1
        self._count(tenant, -QUEUE_OVERHEAD - (0 if chunk.waits_for else CHUNK_OVERHEAD + len(chunk.data)))

    def shrink(self) -> None:
        """Drop the largest subscribers of the largest tenant until no more than `MAX_UNSENT_BYTES` are left.

        A replay counts in full before its first byte is written, so it is often larger than the queue of a slow
        subscriber. If the largest subscriber of all were dropped, many slow ones of one tenant could therefore make
        the gateway drop the replays of others.
        """
        while self._bytes > MAX_UNSENT_BYTES:
            largest = max(self._tenants, key=self._tenants.__getitem__)
            candidates = (each for each in self.subscribers if each.event_filter.tenant == largest)
            max(candidates, key=lambda subscriber: subscriber.waiting_bytes).drop()

    def _count(self, tenant: str, size: int) -> None:
        self._bytes += size
        if left := self._tenants.get(tenant, 0) + size:
            self._tenants[tenant] = left
        else:
            self._tenants.pop(tenant, None)


class Subscriber:
    """A bounded queue of chunks for one connection, which `abort` closes."""

    def __init__(self, event_filter: EventFilter, abort: Callable[[], None], unsent: UnsentMemory) -> None:
        self.event_filter = event_filter
        self.abort = abort
        self._unsent = unsent
        self._replay: deque[Chunk] = deque()
        self._chunks: deque[Chunk] = deque()
        self._replay_bytes = self._live_bytes = 0
        self._writing = 0  # how many chunks at the head of the queue are being written
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def waiting_bytes(self) -> int:
        """The bytes that have not been written."""
        return self._replay_bytes + self._live_bytes

    async def next(self) -> bytes | None:
        """Return the next bytes to write, or None at the end of the stream; the previous bytes count as written."""
        self.written()
        while not (self._replay or self._chunks):
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        writing: list[bytes] = []
        room = BYTES_PER_WRITE
        for chunk in self._replay or self._chunks:
            room -= len(chunk.data)
            if writing and room < 0:
                break
            writing.append(chunk.data)
        self._writing = len(writing)
        return b"".join(writing)

    def written(self) -> None:
        """Forget the chunks that `next` returned; until then, they count as waiting."""
        for _ in range(self._writing):
            if self._replay:
                chunk = self._replay.popleft()
                self._replay_bytes -= len(chunk.data)
            else:
                chunk = self._chunks.popleft()
                self._live_bytes -= len(chunk.data)
            self._unsent.remove(chunk, self.event_filter.tenant)
        self._writing = 0

    def replay(self, chunks: Iterable[bytes]) -> None:
        """Queue the events that the client has missed, to be written before all others; call this before `next`."""
        for data in chunks:
            chunk = Chunk(data)
            self._replay_bytes += len(data)
            self._replay.append(chunk)
            self._unsent.add(chunk, self.event_filter.tenant)
        self._changed.set()
        self._unsent.shrink()

    def push(self, chunk: Chunk) -> None:
        """Queue a chunk; drop the subscriber if its queue is full. It can reconnect and replay what it missed."""
        if self._ended:
            return
        if self._live_bytes + len(chunk.data) > MAX_WAITING_BYTES:
            self.drop()
            return
        self._live_bytes += len(chunk.data)
        self._chunks.append(chunk)
        self._unsent.add(chunk, self.event_filter.tenant)
        self._changed.set()
        self._unsent.shrink()

    def drop(self) -> None:
        """Discard the waiting chunks, and close the connection of a client that reads too slowly."""
        log.info("dropping an event subscriber that reads too slowly", extra={"tenant": self.event_filter.tenant})
        self.discard()
        self.end()
        self.abort()

    def discard(self) -> None:
        """Discard the waiting chunks."""
        for chunk in chain(self._replay, self._chunks):
            self._unsent.remove(chunk, self.event_filter.tenant)
        self._replay.clear()
        self._chunks.clear()
        self._replay_bytes = self._live_bytes = self._writing = 0

    def end(self) -> None:
        """End the stream after the queued chunks."""
        self._ended = True
        self._changed.set()
