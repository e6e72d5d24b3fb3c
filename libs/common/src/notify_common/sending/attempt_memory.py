"""What a sender has attempted: its redelivered messages are answered from here and not sent again."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from notify_common.messages import DeliveryRequested

AttemptKey = tuple[UUID, int, int]


@dataclass(slots=True)
class RememberedAttempt:
    """An attempt that is under way or done, whichever connection its message came over."""

    running: asyncio.Task[DeliveryRequested | None]
    """Ends when the result is confirmed, with the request for the next attempt, if there is one."""
    next_parked: bool = False
    """The next attempt waits in the broker: a second message for this attempt must not park another."""
    settling: asyncio.Lock = field(default_factory=asyncio.Lock)
    handlers: int = 0


class AttemptMemory:
    """Every attempt some handler waits for, and the last `keep` others (an ack can be lost after it was written)."""

    def __init__(self, start: Callable[[DeliveryRequested], Awaitable[DeliveryRequested | None]], *, keep: int) -> None:
        self._start = start
        self._keep = keep
        self._attempts: dict[AttemptKey, RememberedAttempt] = {}
        self._idle: OrderedDict[AttemptKey, None] = OrderedDict()

    @contextmanager
    def attempt(self, request: DeliveryRequested) -> Iterator[RememberedAttempt]:
        """The attempt that `request` asks for, begun now if it is not known."""
        key = (request.delivery_id, request.round, request.attempt)
        remembered = self._attempts.get(key)
        if remembered is None:
            # A task of its own: a connection that is lost cancels the handler, never a provider call.
            remembered = RememberedAttempt(asyncio.create_task(self._run(request)))
            self._attempts[key] = remembered
        self._idle.pop(key, None)
        remembered.handlers += 1
        try:
            yield remembered
        finally:
            remembered.handlers -= 1
            if remembered.handlers == 0:
                self._idle[key] = None
                self._forget()

    async def _run(self, request: DeliveryRequested) -> DeliveryRequested | None:
        return await self._start(request)

    def _forget(self) -> None:
        while len(self._idle) > self._keep:
            oldest, _ = self._idle.popitem(last=False)
            del self._attempts[oldest]
