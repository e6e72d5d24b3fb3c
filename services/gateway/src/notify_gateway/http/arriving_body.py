"""The request bodies in memory: together they are bounded, and tenants share the room."""

import asyncio
from collections import Counter, defaultdict
from operator import attrgetter
from typing import Protocol

from notify_gateway.errors import TooManyInProgress
from notify_gateway.http.origin import Refusal

MAX_BODIES = 32 * 1024 * 1024  # bytes, of all requests in progress together
MAX_ARRIVING = 2_000  # unfinished bodies of one tenant, each of which occupies one of the gateway's 8,000 connections
TOO_LARGE = 503, "Too many large requests are in progress."
BODY = "notify.body"
"""The scope key of the request's `ArrivingBody`. Only our own HTTP server sets it."""


class BodyBuffer(Protocol):
    """The part of a request's body that the HTTP server has not passed on yet."""

    body: bytearray
    message_event: asyncio.Event


class BodyMemory:
    """The memory that the bodies of all requests in progress take together."""

    __slots__ = ("_kept", "_kept_bytes", "arriving", "bytes", "unread")

    def __init__(self) -> None:
        self.arriving = Counter[str]()
        """How many requests of each tenant are authenticated, but have bodies that had not arrived by then."""
        self.bytes = 0
        self.unread: defaultdict[str, UnreadBodies] = defaultdict(UnreadBodies)
        """Those of each tenant. The key is empty for requests that are not authenticated yet."""
        self._kept = Counter[str]()  # the bytes of each tenant's bodies that were read, and are kept until the response
        self._kept_bytes = 0

    def keep(self, tenant: str, size: int) -> bool:
        """Count a body that the application has read; return False if it takes too much of the room.

        Such a body cannot be discarded any more, and its request may wait for long. A tenant may therefore keep only
        twice as much as all tenants together leave free: a tenant alone can take two thirds of the room, and however
        many tenants there are, they leave some of it free.
        """
        self._kept[tenant] += size
        self._kept_bytes += size
        return self._kept[tenant] <= 2 * (MAX_BODIES - self._kept_bytes)

    def free(self, tenant: str, size: int) -> None:
        """Stop counting such a body."""
        self._kept[tenant] -= size
        self._kept_bytes -= size
        if not self._kept[tenant]:
            del self._kept[tenant]


class UnreadBodies:
    """The bodies of which the application has not read the end, oldest first, and how many bytes they take."""

    __slots__ = ("bodies", "bytes")

    def __init__(self) -> None:
        self.bodies: dict[ArrivingBody, None] = {}
        self.bytes = 0


class ArrivingBody:
    """The part of a request's body that is in memory, from its arrival until the response begins."""

    __slots__ = ("_buffer", "_bytes", "_is_arriving", "_kept", "_memory", "_tenant", "arrived", "refusal")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._bytes = 0
        self._tenant = ""
        self._is_arriving = False
        """True if it counts in `BodyMemory.arriving`."""
        self._kept = 0
        """The bytes that `BodyMemory.keep` has counted."""
        self._buffer: BodyBuffer | None = None
        self.arrived = False
        """True if the whole request has arrived."""
        self.refusal: Refusal | None = None
        """The error that the request gets instead of the rest of its body."""

    def admit(self, size: int, buffer: BodyBuffer) -> bool:
        """Count `size` bytes that have arrived for `buffer`; return False if they must not be kept.

        If all bodies together take too much memory, refuse those that have been arriving for longest, of the tenant
        whose bodies take most. Bodies that never end, or that wait behind another request, therefore do not keep out
        the requests of other tenants.
        """
        if self.refusal is not None:
            return False
        memory = self._memory
        if self._buffer is None:
            self._buffer = buffer
            memory.unread[self._tenant].bodies[self] = None
        memory.unread[self._tenant].bytes += size
        memory.bytes += size
        self._bytes += size
        while memory.bytes > MAX_BODIES and memory.unread:
            largest = max(memory.unread.values(), key=attrgetter("bytes"))
            next(iter(largest.bodies)).give_way()
        return self.refusal is None

    def belongs_to(self, tenant: str) -> None:
        """Note that the request has been authenticated; raise `TooManyInProgress` if too many bodies are arriving."""
        if self._buffer is not None:
            self._forget()
            unread = self._memory.unread[tenant]
            unread.bodies[self] = None
            unread.bytes += self._bytes
        self._tenant = tenant
        if not self.arrived:
            if self._memory.arriving[tenant] >= MAX_ARRIVING:
                raise TooManyInProgress
            self._memory.arriving[tenant] += 1
            self._is_arriving = True

    def read(self) -> None:
        """Note that the application has read the whole body, which is then kept until the response begins.

        Set `refusal` if the tenant's bodies take too much of the room.
        """
        self._end()
        self._kept = self._bytes
        if self._kept and not self._memory.keep(self._tenant, self._kept):
            self.refusal = TOO_LARGE

    def _end(self) -> None:
        """Stop waiting for the end of the body."""
        if self._is_arriving:
            self._is_arriving = False
            self._memory.arriving[self._tenant] -= 1
            if not self._memory.arriving[self._tenant]:
                del self._memory.arriving[self._tenant]
        if self._buffer is not None:
            self._forget()
            self._buffer = None  # this also breaks a reference cycle

    def _forget(self) -> None:
        """Stop counting the body as unread."""
        unread = self._memory.unread[self._tenant]
        del unread.bodies[self]
        unread.bytes -= self._bytes
        if not unread.bodies:
            del self._memory.unread[self._tenant]

    def free(self) -> None:
        """Stop counting what has arrived, because it is no longer in memory."""
        self._end()
        if self._kept:
            self._memory.free(self._tenant, self._kept)
        self._memory.bytes -= self._bytes
        self._bytes = self._kept = 0

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
