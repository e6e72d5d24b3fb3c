"""Let only a few requests begin in each turn of the event loop, so that very many do not stop those in progress.

Many requests are handled in a single step, such as those that get a 404 or 429. A request that is accepted takes about
twenty steps, each in a later turn. If a thousand clients repeat a request of the first kind, a turn without this limit
lasts for as long as a thousand requests, and all others wait for twenty of these turns.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

# A request takes 0.1 to 2 ms of CPU time, and a turn without any about 0.02 ms. A turn accepts as many new connections
# (`ACCEPTED_AT_ONCE`), so that requests whose clients have left do not pile up.
REQUESTS_PER_TURN = 16

Sender = bytes | str
"""What tells waiting requests apart: the header `Authorization`, whose key may be unknown yet, or else the address."""


class Turns:
    """Admits up to `REQUESTS_PER_TURN` requests in each turn of the event loop.

    If there are more, they wait, and their senders take turns. So one that sends very many delays mainly its own.
    """

    def __init__(self) -> None:
        self._room = REQUESTS_PER_TURN
        self._renewing = False
        # Each line has at least one request. The first one is next.
        self._lines: OrderedDict[Sender, deque[asyncio.Future[None]]] = OrderedDict()

    async def begin(self, scope: Mapping[str, Any]) -> None:
        """Wait until the request of `scope` may begin."""
        if self._room:
            self._room -= 1
            self._renew_soon()
            return
        admitted = asyncio.get_running_loop().create_future()
        self._lines.setdefault(_sender(scope), deque()).append(admitted)
        await admitted

    def _renew_soon(self) -> None:
        if not self._renewing:
            self._renewing = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        """Admit those that wait, in a new turn."""
        self._renewing = False
        self._room = REQUESTS_PER_TURN
        while self._lines and self._room:
            sender, line = self._lines.popitem(last=False)
            admitted = line.popleft()
            if line:
                self._lines[sender] = line
            if not admitted.done():  # it is done if the request was cancelled
                admitted.set_result(None)
                self._room -= 1
                self._renew_soon()


def _sender(scope: Mapping[str, Any]) -> Sender:
    key = next((value for name, value in scope["headers"] if name == b"authorization"), None)
    return (scope.get("client") or ("",))[0] if key is None else key
