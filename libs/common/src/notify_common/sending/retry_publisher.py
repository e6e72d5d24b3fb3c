"""Publish retries to the retry queues. If a queue does not accept them, they go to another one."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.errors import NotConfirmed, NotWritten, PublishFailed, PublishRefused
from notify_common.rabbitmq.connection import RECONNECT_INTERVAL
from notify_common.rabbitmq.publisher import Confirmations, ConfirmedPublisher, OutgoingMessage
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher
from notify_common.runtime.clock import utc_now
from notify_common.runtime.outage import Outage
from notify_common.sending.metrics import SenderMetrics
from notify_common.sending.retry_schedule import RetrySchedule, due_at

log = logging.getLogger(__name__)

MAX_BATCH = 200
# A batch that is not confirmed keeps its messages unacknowledged. The rest of the prefetch is left for other messages.
SHARE_OF_PREFETCH = 0.25
CONFIRM_TIME = 1.0  # seconds after which an unconfirmed batch is suspicious
RESPONSE_TIME = 1.0  # seconds in which RabbitMQ must respond
REFUSED_TIME = 10.0  # seconds for which a queue that has refused a retry gets no others
# This is long, because a copy in a second queue leads to a second attempt once the first queue has a majority again. It
# is shorter than RabbitMQ's consumer timeout of 30 minutes, after which another sender would repeat the last attempt.
GIVE_UP_AFTER = 600.0  # seconds

_Publishing = asyncio.Task[list[PublishFailed | None]]


class RetryPublisher:
    """Publishes a channel's retries, each to the available retry queue that suits its wait best.

    A message in a queue with a shorter delay returns early, and is published again. If no queue with a shorter delay is
    available, the message goes to one with a longer delay.
    """

    def __init__(
        self,
        create_publisher: Callable[[], ConfirmedPublisher],
        *,
        channel: Channel,
        schedule: RetrySchedule,
        metrics: SenderMetrics,
        prefetch: int,
        give_up_after: float = GIVE_UP_AFTER,
    ) -> None:
        self._schedule = schedule
        self._metrics = metrics
        max_batch = max(1, min(MAX_BATCH, int(prefetch * SHARE_OF_PREFETCH)))
        self._queues = {
            delay: _RetryQueue(
                create_publisher(), channel, delay, metrics, max_batch=max_batch, give_up_after=give_up_after
            )
            for delay in schedule.delays
        }

    async def publish(self, request: DeliveryRequested, wait_from: datetime) -> bool:
        """Publish the request to a retry queue, where it occupies no worker; return True if the broker confirms it."""
        while True:
            available = [delay for delay, queue in self._queues.items() if queue.available]
            if not available:
                return False
            failure = await self._queues[self._delay(request, wait_from, available)].publish(request)
            if failure is None:
                self._metrics.retries_scheduled.inc()
                return True
            if not isinstance(failure, NotWritten | NotConfirmed | PublishRefused):
                return False
            wait_from = max(wait_from, utc_now())

    def _delay(self, request: DeliveryRequested, wait_from: datetime, delays: Sequence[timedelta]) -> timedelta:
        due = due_at(request) or wait_from
        # A turn and an expiry come at their exact time, however long the wait is.
        exact = request.reserved or due == request.expires_at
        latest = timedelta.max if request.expires_at is None else request.expires_at - wait_from
        return self._schedule.queue_delay(due - wait_from, exact=exact, latest=latest, delays=delays)


class _RetryQueue:
    """One retry queue, with its own AMQP channel, because a queue that does not confirm holds up its AMQP channel.

    If a batch is not confirmed within seconds, although RabbitMQ responds, the queue is at fault, and retries that have
    not been written go to other queues. Those of the batch follow only after `give_up_after` seconds, because the queue
    may have stored them.
    """

    def __init__(
        self,
        publisher: ConfirmedPublisher,
        channel: Channel,
        delay: timedelta,
        metrics: SenderMetrics,
        *,
        max_batch: int,
        give_up_after: float,
    ) -> None:
        self._publisher = publisher
        self._exchange = topology.retry_exchange(channel)
        self._routing_key = topology.retry_routing_key(delay)
        self._name = topology.retry_queue_name(channel, delay)
        self._give_up_after = give_up_after
        self._unconfirmed_batch: _Publishing | None = None
        self._refused_until = 0.0
        self._outage = Outage(log, f"{self._name} confirms no retries, so they go to other retry queues")
        self._batcher = Batcher(
            self._flush, max_batch=max_batch, interval_after=interval_after, observe=metrics.observe_retries_batch
        )

    @property
    def available(self) -> bool:
        """True if the queue has no unconfirmed batch, and has not refused a retry recently."""
        return self._unconfirmed_batch is None and self._refused_until <= _now()

    async def publish(self, request: DeliveryRequested) -> PublishFailed | None:
        """Publish the request, and return None once the broker has confirmed it, or else the failure.

        While a batch is unconfirmed, nothing else is written to the queue, because it would not be confirmed either.
        """
        outcome = await self._batcher.submit(request)
        if isinstance(outcome, _UnconfirmedRetry):
            outcome = await outcome.failure()
        if isinstance(outcome, PublishRefused):
            self._outage.failed(outcome)
            self._refused_until = _now() + REFUSED_TIME
        return outcome

    async def _flush(self, retries: Sequence[DeliveryRequested]) -> "list[PublishFailed | _UnconfirmedRetry | None]":
        if self._unconfirmed_batch is not None:
            return [NotWritten(f"{self._name} does not confirm")] * len(retries)
        # The bodies are made here, because thousands of retries may wait for the broker, and each body may be large.
        messages = [
            OutgoingMessage(self._exchange, self._routing_key, request.body(), request.headers()) for request in retries
        ]
        written: list[asyncio.Future[Any]] = []
        publishing = asyncio.create_task(self._publisher.publish(messages, on_written=written.extend))
        publishing.add_done_callback(self._ended)
        await self._wait_for_confirms(publishing)
        if publishing.done():
            return [*publishing.result()]
        self._unconfirmed_batch = publishing
        self._outage.failed("not confirmed, although RabbitMQ responds")
        last_wait = asyncio.create_task(self._wait_before_giving_up(publishing))
        unconfirmed = [_UnconfirmedRetry(publishing, written, last_wait, number) for number in range(len(retries))]
        return [None if each.confirmed else each for each in unconfirmed]

    async def _wait_for_confirms(self, publishing: _Publishing) -> None:
        """Wait until the batch is confirmed, or RabbitMQ responds without confirming it: then the queue is at fault."""
        await asyncio.wait({publishing}, timeout=CONFIRM_TIME)
        if not publishing.done():
            await self._wait_for_response(publishing)
            # The end of a memory alarm brings the response a little earlier than the confirms.
            await asyncio.wait({publishing}, timeout=CONFIRM_TIME)

    async def _wait_before_giving_up(self, publishing: _Publishing) -> None:
        await asyncio.wait({publishing}, timeout=self._give_up_after)
        # If this process was suspended, it may not have read the confirms yet. They arrive before the response.
        await self._wait_for_response(publishing)

    async def _wait_for_response(self, publishing: _Publishing) -> None:
        """Wait until the batch is confirmed, or until RabbitMQ responds, which means that it has read the batch."""
        while not publishing.done() and not await self._publisher.responds(RESPONSE_TIME):
            await asyncio.wait({publishing}, timeout=RECONNECT_INTERVAL)

    def _ended(self, publishing: _Publishing) -> None:
        if self._unconfirmed_batch is publishing:
            self._unconfirmed_batch = None
        if not publishing.cancelled() and publishing.exception() is None and None in publishing.result():
            self._outage.ended()


@dataclass(frozen=True, slots=True)
class _UnconfirmedRetry:
    """A retry that was written, but not confirmed for a while."""

    publishing: _Publishing
    confirmations: Confirmations
    last_wait: asyncio.Task[None]
    """Ends when `publishing` has ended, or has taken too long. All retries of the batch share it."""
    number: int

    @property
    def confirmed(self) -> bool:
        """True if RabbitMQ has confirmed this retry, even if it has not confirmed the whole batch."""
        if self.number >= len(self.confirmations):
            return False
        confirmation = self.confirmations[self.number]
        return confirmation.done() and not confirmation.cancelled() and confirmation.exception() is None

    async def failure(self) -> PublishFailed | None:
        """Wait for the confirms; return None if this retry was confirmed, or else the failure."""
        await asyncio.shield(self.last_wait)
        if self.publishing.done():
            return self.publishing.result()[self.number]
        return None if self.confirmed else NotConfirmed("the queue has not confirmed the retry in time")


def _now() -> float:
    return asyncio.get_running_loop().time()
