"""Remember recent attempts, so that a redelivered message does not lead to a second provider call."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from notify_common.contracts.messages import DeliveryRequested
from notify_common.runtime.clock import utc_now
from notify_common.sending.attempt import Decision, Postponed

AttemptKey = tuple[UUID, int, int]


@dataclass(slots=True)
class RememberedAttempt:
    """A running or finished attempt, which may outlive the connection that delivered its message."""

    decision: asyncio.Future[Decision | Postponed]
    """Completes when the broker has confirmed the result, or when the attempt is postponed."""
    not_before: datetime | None
    """The `not_before` of its request. If the attempt is postponed, the next request has a different one."""
    publishing: asyncio.Task[bool] | None = None
    """Publishes the next request. Handlers share this task, so that the next attempt is not scheduled twice."""
    handlers: int = 0
    calling: bool = False
    """True once its call may have reached the provider. Then it goes on, even if no handler waits for it."""

    @property
    def was_postponed(self) -> bool:
        """True if the attempt was postponed instead of being made."""
        if not self.decision.done() or self.decision.cancelled() or self.decision.exception() is not None:
            return False
        return isinstance(self.decision.result(), Postponed)

    @property
    def next_request_confirmed(self) -> bool:
        """True if the broker has confirmed the next request."""
        task = self.publishing
        return task is not None and task.done() and not task.cancelled() and not task.exception() and task.result()

    def forget_next_request(self, decision: Decision) -> None:
        """Drop the next request, which the broker has confirmed, because thousands of them would fill the memory."""
        self.decision = asyncio.get_running_loop().create_future()
        self.decision.set_result(replace(decision, next_request=None))


class AttemptMemory:
    """Remembers all attempts that handlers wait for, and the last `keep` others, whose acks may have been lost.

    For a postponed attempt, it remembers only when the next request is due, because that request makes the attempt.
    """

    def __init__(
        self, start: Callable[[DeliveryRequested], Coroutine[Any, Any, Decision | Postponed]], *, keep: int
    ) -> None:
        self._start = start
        self._keep = keep
        self._attempts: dict[AttemptKey, RememberedAttempt] = {}
        self._idle: OrderedDict[AttemptKey, None] = OrderedDict()
        self._due_again: OrderedDict[tuple[AttemptKey, datetime | None], datetime] = OrderedDict()
        """When the next request of a postponed attempt is due, by the attempt and the `not_before` of its request."""

    @contextmanager
    def join(self, request: DeliveryRequested) -> Iterator[RememberedAttempt]:
        """Yield the attempt that `request` asks for; start it unless it is running or remembered."""
        key, remembered = _key(request), self._remembered(request)
        if remembered is None:
            # A lost connection cancels the handler but must not cancel the provider call, so that is a separate task.
            remembered = RememberedAttempt(asyncio.create_task(self._start(request)), request.not_before)
            self._attempts[key] = remembered
        self._idle.pop(key, None)
        remembered.handlers += 1
        try:
            yield remembered
        finally:
            remembered.handlers -= 1
            if remembered.handlers == 0:
                self._leave(key, remembered)

    def mark_calling(self, request: DeliveryRequested) -> None:
        """Note that the call of the attempt is about to begin."""
        self._attempts[_key(request)].calling = True

    def already_postponed(self, request: DeliveryRequested) -> bool:
        """Return True if `request` was received before and postponed to a time that has not come yet.

        After that time it returns False: either the attempt was made and is remembered, or the next request was lost
        and this one must be handled.
        """
        due_at = self._due_again.get((_key(request), request.not_before)) if self._due_again else None
        return due_at is not None and utc_now() < due_at

    def remembers(self, request: DeliveryRequested) -> bool:
        """Return True if joining starts no new attempt."""
        return self._remembered(request) is not None

    def in_progress(self) -> float:
        """Return the number of attempts that have not ended."""
        return sum(not attempt.decision.done() for attempt in self._attempts.values())

    async def drained(self) -> None:
        """Return when no attempt is in progress."""
        while running := {attempt.decision for attempt in self._attempts.values() if not attempt.decision.done()}:
            await asyncio.wait(running)

    def _remembered(self, request: DeliveryRequested) -> RememberedAttempt | None:
        """Return the attempt that `request` joins. A request that follows a postponed attempt joins none."""
        remembered = self._attempts.get(_key(request))
        if remembered is not None and remembered.was_postponed and remembered.not_before != request.not_before:
            return None
        return remembered

    def _leave(self, key: AttemptKey, remembered: RememberedAttempt) -> None:
        """Keep or forget an attempt whose last handler has left."""
        if remembered.was_postponed:
            self._forget_postponed(key, remembered)
        elif remembered.calling:
            self._idle[key] = None
            self._forget()
        else:
            # The connection was lost before the call began. RabbitMQ may give the message to another sender.
            remembered.decision.cancel()
            del self._attempts[key]

    def _forget_postponed(self, key: AttemptKey, remembered: RememberedAttempt) -> None:
        if remembered.handlers:
            return  # the message was redelivered
        if remembered.publishing is not None and not remembered.publishing.done():
            # The connection was lost. The message may be redelivered before the next request is confirmed.
            remembered.publishing.add_done_callback(lambda _: self._forget_postponed(key, remembered))
            return
        if self._attempts.get(key) is remembered:
            del self._attempts[key]
        decision = remembered.decision.result()
        assert isinstance(decision, Postponed)  # noqa: S101 - the callers have checked it
        if remembered.next_request_confirmed and decision.next_request.not_before is not None:
            self._due_again[key, remembered.not_before] = decision.next_request.not_before
            if len(self._due_again) > self._keep:
                self._due_again.popitem(last=False)

    def _forget(self) -> None:
        while len(self._idle) > self._keep:
            oldest = next(iter(self._idle))
            if not self._attempts[oldest].decision.done():
                break  # still running; its message will be redelivered on another connection
            del self._idle[oldest]
            del self._attempts[oldest]


def _key(request: DeliveryRequested) -> AttemptKey:
    return (request.delivery_id, request.round, request.attempt)
