"""What a sender has attempted: its redelivered messages are answered from here and not sent again."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.attempt import Decision, Postponed

AttemptKey = tuple[UUID, int, int]


@dataclass(slots=True)
class RememberedAttempt:
    """An attempt that is under way or done, whichever connection its message came over."""

    running: asyncio.Future[Decision | Postponed]
    """Ends when the result is confirmed."""
    scheduling: asyncio.Task[bool] | None = None
    """Ends when it is known whether the broker has the next attempt; a second message must not park another."""
    handlers: int = 0

    @property
    def postponed(self) -> bool:
        """Whether it has ended without having been made."""
        if not self.running.done() or self.running.cancelled() or self.running.exception() is not None:
            return False
        return isinstance(self.running.result(), Postponed)

    def next_is_scheduled(self, decision: Decision) -> None:
        """Forget the next attempt: the broker has it, and thousands, with all that they say, would fill memory."""
        self.running = asyncio.get_running_loop().create_future()
        self.running.set_result(replace(decision, next_request=None))


class AttemptMemory:
    """Every attempt some handler waits for, and the last `keep` others (an ack can be lost after it was written)."""

    def __init__(
        self, start: Callable[[DeliveryRequested], Coroutine[Any, Any, Decision | Postponed]], *, keep: int
    ) -> None:
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
            remembered = RememberedAttempt(asyncio.create_task(self._start(request)))
            self._attempts[key] = remembered
        self._idle.pop(key, None)
        remembered.handlers += 1
        try:
            yield remembered
        finally:
            remembered.handlers -= 1
            if remembered.handlers == 0 and remembered.postponed:
                del self._attempts[key]
            elif remembered.handlers == 0:
                self._idle[key] = None
                self._forget()

    def under_way(self) -> float:
        """How many attempts have not ended."""
        return sum(not attempt.running.done() for attempt in self._attempts.values())

    async def drained(self) -> None:
        """Return when no attempt is under way."""
        while running := {attempt.running for attempt in self._attempts.values() if not attempt.running.done()}:
            await asyncio.wait(running)

    def _forget(self) -> None:
        while len(self._idle) > self._keep:
            oldest = next(iter(self._idle))
            if not self._attempts[oldest].running.done():
                break  # its message comes again, on another connection
            del self._idle[oldest]
            del self._attempts[oldest]
