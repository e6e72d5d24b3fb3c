"""Let only a few requests begin in each turn of the event loop, so that very many do not stop those in progress.

Many requests are handled in a single step, such as those that get a 404 or 429. A request that is accepted takes about
twenty steps, each in a later turn. If a thousand clients repeat a request of the first kind, a turn without this limit
lasts for as long as a thousand requests, and all others wait for twenty of these turns.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from notify_gateway.http.slow_readers import PEERS, Group

# A request takes 0.1 to 5 ms of CPU time, and a turn without any about 0.02 ms. A turn accepts as many new connections
# (`ACCEPTED_AT_ONCE`), so that requests whose clients have left do not pile up.
REQUESTS_PER_TURN = 16
LONGEST_TURN = 0.025  # seconds; after a turn that took longer, fewer requests begin in the next one

TenantOf = Callable[[str], str | None]
"""Returns the tenant of a header `Authorization` with a valid key, or None if the key is unknown so far."""


class Turns:
    """Admits up to `REQUESTS_PER_TURN` requests in each turn of the event loop.

    If there are more, they wait, and their senders take turns. So one that sends very many delays mainly its own.
    Requests without a known key count for their address, because anyone can make up any number of keys.
    """

    def __init__(self, tenant_of: TenantOf) -> None:
        self._tenant_of = tenant_of
        self._size = self._room = REQUESTS_PER_TURN
        self._began = 0.0
        self._renewing = False
        # Each line has at least one request. The first one is next.
        self._lines: OrderedDict[Group, deque[asyncio.Future[None]]] = OrderedDict()

    async def begin(self, scope: Mapping[str, Any]) -> None:
        """Wait until the request of `scope` may begin."""
        if self._room:
            self._room -= 1
            self._renew_soon()
            return
        admitted = asyncio.get_running_loop().create_future()
        self._lines.setdefault(self._sender(scope), deque()).append(admitted)
        await admitted

    def _renew_soon(self) -> None:
        if not self._renewing:
            self._renewing = True
            self._began = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        """Admit those that wait, in a new turn."""
        self._renewing = False
        self._room = self._size = self._next_size(time.perf_counter() - self._began)
        while self._lines and self._room:
            sender, line = self._lines.popitem(last=False)
            admitted = line.popleft()
            if line:
                self._lines[sender] = line
            if not admitted.done():  # it is done if the request was cancelled
                admitted.set_result(None)
                self._room -= 1
                self._renew_soon()

    def _next_size(self, lasted: float) -> int:
        """Return how many requests may begin in a turn after one that has lasted so long."""
        if lasted > LONGEST_TURN:
            return max(self._size // 2, 1)
        if lasted < LONGEST_TURN / 2:
            return min(self._size * 2, REQUESTS_PER_TURN)
        return self._size

    def _sender(self, scope: Mapping[str, Any]) -> Group:
        key = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        tenant = None if key is None else self._tenant_of(key.decode("latin-1"))
        return ("address", PEERS.group(scope)) if tenant is None else ("tenant", tenant)
