"""Let only a few requests begin in each turn of the event loop, so that very many do not stop those in progress.

Many requests are handled in a single step, such as those that get a 404 or 429. A request that is accepted takes about
twenty steps, each in a later turn. If a thousand clients repeat a request of the first kind, a turn without this limit
lasts for as long as a thousand requests, and all others wait for twenty of these turns. The same holds if the bodies of
a thousand requests end at once, because most of the work comes after that.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from notify_gateway.http.slow_readers import PEERS, Group

# A request takes 0.1 to 5 ms of CPU time, and a turn without any about 0.02 ms.
REQUESTS_PER_TURN = 16
LONGEST_TURN = 0.025  # seconds; after a turn that took longer, fewer requests begin in the next one

# The number of connections does not limit requests whose clients have left, so these could pile up. They are looked for
# once this many requests wait.
SEARCHED_FROM = 1_000

HEALTH_CHECKS = frozenset({"/livez", "/readyz"})  # paths
HEALTH: Group = "health checks", ""
"""Health checks are a group of their own, because a proxy takes a gateway that answers them too late for down."""

TenantOf = Callable[[str], str | None]
"""Returns the tenant of a header `Authorization` with a valid key, or None if the key is unknown so far."""


class _Waiting(NamedTuple):
    """A request that waits."""

    admitted: "asyncio.Future[bool]"
    transport: asyncio.BaseTransport | None

    def has_left(self) -> bool:
        """Return whether the client has left, so that nobody waits for a response."""
        return self.transport is not None and self.transport.is_closing()


class Turns:
    """Admits up to `REQUESTS_PER_TURN` requests in each turn of the event loop.

    If there are more, they wait, and the clients take turns. A client that sends very many therefore delays mainly its
    own. Requests without a known key count for their address, because anyone can make up any number of keys.
    """

    def __init__(self, tenant_of: TenantOf) -> None:
        self._tenant_of = tenant_of
        self._size = self._room = REQUESTS_PER_TURN
        self._began = 0.0
        self._renewing = False
        # Each line has at least one request. The first one is next.
        self._lines: OrderedDict[Group, deque[_Waiting]] = OrderedDict()
        self._waiting = 0
        self._search_at = SEARCHED_FROM

    async def begin(self, scope: Mapping[str, Any], transport: asyncio.BaseTransport | None) -> bool:
        """Wait until the request of `scope` may begin or go on; return False if its client leaves first."""
        if self._room:
            self._room -= 1
            self._renew_soon()
            return True
        waiting = _Waiting(asyncio.get_running_loop().create_future(), transport)
        self._lines.setdefault(self._client(scope), deque()).append(waiting)
        self._waiting += 1
        if self._waiting >= self._search_at:
            self._end_left()
        return await waiting.admitted

    def _renew_soon(self) -> None:
        if not self._renewing:
            self._renewing = True
            self._began = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        """Begin a new turn: admit requests that wait."""
        self._renewing = False
        self._room = self._size = self._next_size(time.perf_counter() - self._began)
        while self._lines and self._room:
            client, line = self._lines.popitem(last=False)
            waiting = line.popleft()
            self._waiting -= 1
            if line:
                self._lines[client] = line
            if waiting.admitted.done():  # it was cancelled, or its client has left
                continue
            if waiting.has_left():
                waiting.admitted.set_result(False)
                continue
            waiting.admitted.set_result(True)
            self._room -= 1
            self._renew_soon()

    def _end_left(self) -> None:
        """End the requests whose clients have left. Search again once twice as many wait as are left."""
        lines, self._lines, self._waiting = self._lines, OrderedDict(), 0
        for client, line in lines.items():
            for waiting in line:
                if waiting.has_left() and not waiting.admitted.done():
                    waiting.admitted.set_result(False)
            if here := deque(waiting for waiting in line if not waiting.admitted.done()):
                self._lines[client] = here
                self._waiting += len(here)
        self._search_at = max(SEARCHED_FROM, 2 * self._waiting)

    def _next_size(self, lasted: float) -> int:
        """Return how many requests may begin in the next turn, if the previous one took `lasted` seconds."""
        if lasted > LONGEST_TURN:
            return max(self._size // 2, 1)
        if lasted < LONGEST_TURN / 2:
            return min(self._size * 2, REQUESTS_PER_TURN)
        return self._size

    def _client(self, scope: Mapping[str, Any]) -> Group:
        if scope["path"] in HEALTH_CHECKS:
            return HEALTH
        key = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        tenant = None if key is None else self._tenant_of(key.decode("latin-1"))
        return ("address", PEERS.group(scope)) if tenant is None else ("tenant", tenant)
