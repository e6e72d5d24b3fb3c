"""Remember recent attempts, so that a redelivered message does not lead to a second provider call."""

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
    """A running or finished attempt, which may outlive the connection that delivered its message."""

    decision: asyncio.Future[Decision | Postponed]
    """Completes when the broker has confirmed the result, or when the attempt is postponed."""
    scheduling: asyncio.Task[bool] | None = None
    """Publishes the next request. Handlers share this task, so that the next attempt is not scheduled twice."""
    handlers: int = 0

    @property
    def postponed(self) -> bool:
        """True if the attempt was postponed instead of being made."""
        if not self.decision.done() or self.decision.cancelled() or self.decision.exception() is not None:
            return False
        return isinstance(self.decision.result(), Postponed)

    def forget_next_request(self, decision: Decision) -> None:
        """Drop the next request, which the broker has confirmed, because thousands of them would fill the memory."""
        self.decision = asyncio.get_running_loop().create_future()
        self.decision.set_result(replace(decision, next_request=None))


class AttemptMemory:
    """Remembers all attempts that handlers wait for, and the last `keep` others, whose acks may have been lost."""

    def __init__(
        self, start: Callable[[DeliveryRequested], Coroutine[Any, Any, Decision | Postponed]], *, keep: int
    ) -> None:
        self._start = start
        self._keep = keep
        self._attempts: dict[AttemptKey, RememberedAttempt] = {}
        self._idle: OrderedDict[AttemptKey, None] = OrderedDict()

    @contextmanager
    def join(self, request: DeliveryRequested) -> Iterator[RememberedAttempt]:
        """Yield the attempt that `request` asks for; start it unless it is running or remembered."""
        key = _key(request)
        remembered = self._attempts.get(key)
        if remembered is None:
            # A lost connection cancels the handler but must not cancel the provider call, so that is a separate task.
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

    def remembers(self, request: DeliveryRequested) -> bool:
        """Return True if joining starts no new attempt."""
        return _key(request) in self._attempts

    def in_progress(self) -> float:
        """Return the number of attempts that have not ended."""
        return sum(not attempt.decision.done() for attempt in self._attempts.values())

    async def drained(self) -> None:
        """Return when no attempt is in progress."""
        while running := {attempt.decision for attempt in self._attempts.values() if not attempt.decision.done()}:
            await asyncio.wait(running)

    def _forget(self) -> None:
        while len(self._idle) > self._keep:
            oldest = next(iter(self._idle))
            if not self._attempts[oldest].decision.done():
                break  # still running; its message will be redelivered on another connection
            del self._idle[oldest]
            del self._attempts[oldest]


def _key(request: DeliveryRequested) -> AttemptKey:
    return (request.delivery_id, request.round, request.attempt)
