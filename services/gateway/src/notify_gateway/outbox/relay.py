"""The outbox relay: publish committed deliveries, and delete their outbox rows after the broker confirms them."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress

from aio_pika.abc import AbstractConnection
from faststream.rabbit import RabbitBroker
from notify_common.contracts import topology
from notify_common.contracts.messages import DeliveryRequested
from notify_common.contracts.trace_context import TRACEPARENT_HEADER
from notify_common.errors import PublishFailed
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import UNTRACED, Span, Tracing
from notify_database.errors import DatabaseUnavailable

from notify_gateway.metrics import GatewayMetrics
from notify_gateway.outbox.store import LEASE, OutboxStore

log = logging.getLogger(__name__)

BATCH_SIZE = 200  # messages whose confirms are awaited together
BATCH_INTERVAL = 0.01  # seconds between batches, so that deliveries that arrive in between share a batch
MAX_HANDED_OVER = 10_000  # deliveries
POLL_INTERVAL = 0.5  # seconds between polls of the table for due deliveries
CONNECTION_INTERVAL = 0.5  # seconds between checks for a connection to RabbitMQ
LEASE_SECONDS = LEASE.total_seconds()
# Publishing begins only if this much of the lease is left, which leaves time to renew the lease twice.
LEASE_RESERVE = LEASE_SECONDS / 3
RENEW_INTERVAL = LEASE_RESERVE / 2


class OutboxRelay:
    """Publishes deliveries that this process has just committed, and due deliveries that no relay has leased."""

    def __init__(
        self,
        broker: RabbitBroker,
        publisher: ConfirmedPublisher,
        outbox: OutboxStore,
        events: EventPublisher,
        metrics: GatewayMetrics,
        tracing: Tracing = UNTRACED,
    ) -> None:
        self._broker = broker
        self._publisher = publisher
        self._outbox = outbox
        self._events = events
        self._metrics = metrics
        self._tracing = tracing
        self._connection: AbstractConnection | None = None
        self._handed_over: deque[tuple[DeliveryRequested, float]] = deque()
        self._wake = asyncio.Event()
        self._next_poll = 0.0
        self._database_outage = Outage(log, "the outbox is unavailable")
        self._publish_outage = Outage(log, "RabbitMQ is not confirming deliveries, so they stay in the outbox")

    @property
    def connected(self) -> bool:
        """True if the connection to RabbitMQ is open, as far as this process knows."""
        return self._connection is not None and self._connection.connected.is_set()

    def has_room_for(self, count: int) -> bool:
        """Return whether `count` deliveries may be handed over; during a broker outage, none may."""
        return self.connected and len(self._handed_over) + count <= MAX_HANDED_OVER

    def hand_over(self, requests: Sequence[DeliveryRequested], lease_began: float) -> None:
        """Queue newly committed deliveries, whose leases began at `lease_began` (monotonic seconds)."""
        lease_ends = lease_began + LEASE_SECONDS
        self._handed_over.extend((request, lease_ends) for request in requests)
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set, despite outages of RabbitMQ and PostgreSQL. The topology must already exist."""
        self._connection = await self._broker.connect()
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._wake.set())
        while not stop.is_set():
            if not self.connected:
                await asyncio.wait({stopping}, timeout=CONNECTION_INTERVAL)
                continue
            wait, next_batch_at = 0.0, time.monotonic() + BATCH_INTERVAL
            try:
                if batch := await self._next_batch():
                    after_failure = await self._publish(batch)
                    wait = after_failure or next_batch_at - time.monotonic()
                self._database_outage.ended()
            except DatabaseUnavailable as unavailable:
                wait = self._database_outage.failed(unavailable)
            if wait > 0:
                await asyncio.wait({stopping}, timeout=wait)  # a sleep that `stop` interrupts
        await self._finish()

    async def _next_batch(self) -> list[DeliveryRequested]:
        """Return deliveries that were handed over and, once per `POLL_INTERVAL`, due deliveries without a lease."""
        if time.monotonic() < self._next_poll:
            if not self._handed_over:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._next_poll - time.monotonic()):
                        await self._wake.wait()
            return self._take_handed_over()
        due = await self._outbox.take_due(BATCH_SIZE)
        if len(due.requests) + len(due.ended) < BATCH_SIZE:
            self._next_poll = time.monotonic() + POLL_INTERVAL
        self._events.publish(due.ended)
        # The two kinds share a batch, so that neither starves the other.
        return [*due.requests, *self._take_handed_over()]

    def _take_handed_over(self) -> list[DeliveryRequested]:
        batch: list[DeliveryRequested] = []
        must_outlast = time.monotonic() + LEASE_RESERVE
        while self._handed_over and len(batch) < BATCH_SIZE:
            request, lease_ends = self._handed_over.popleft()
            # If the lease ends soon, another relay may take the row, so the row is left to whichever relay polls next.
            if lease_ends > must_outlast:
                batch.append(request)
        return batch

    async def _publish(self, batch: Sequence[DeliveryRequested]) -> float:
        """Publish the batch and delete the confirmed rows; return the seconds to wait if any failed, otherwise 0."""
        spans = [self._tracing.begin(f"publish {each.channel}", each.traceparent, "producer") for each in batch]
        messages = [_outgoing(request, span) for request, span in zip(batch, spans, strict=True)]
        publishing = asyncio.create_task(self._publish_together(messages, spans))
        while not (await asyncio.wait({publishing}, timeout=RENEW_INTERVAL))[0]:
            # The broker is blocking publishers, for example during a memory alarm. It may still accept these messages
            # later, so the leases are renewed to keep other relays from publishing them.
            with suppress(DatabaseUnavailable):
                await self._outbox.renew(batch)
        outcomes = list(zip(batch, publishing.result(), strict=True))
        confirmed = [request for request, failure in outcomes if failure is None]
        failed = [request for request, failure in outcomes if failure is not None]
        self._metrics.observe_published_batch(len(batch))
        for channel, count in Counter(request.channel for request in confirmed).items():
            self._metrics.published[channel].inc(count)
        if confirmed:
            # Rows are deleted only after their confirms, so a crash in between repeats messages but loses none. The
            # delete is retried until it succeeds, because giving up would repeat messages, too.
            await self._database_outage.retry(lambda: self._outbox.delete(confirmed), DatabaseUnavailable)
        if not failed:
            self._publish_outage.ended()
            return 0.0
        wait = self._publish_outage.failed(next(failure for _, failure in outcomes if failure is not None))
        await self._outbox.release(failed)
        return wait

    async def _publish_together(
        self, messages: Sequence[OutgoingMessage], spans: Sequence[Span]
    ) -> list[PublishFailed | None]:
        with self._tracing.group("publish deliveries", (span.traceparent for span in spans)):
            failures = await self._publisher.publish(messages)
        for span, failure in zip(spans, failures, strict=True):
            if failure is not None:
                span.fail(str(failure))
            span.end()
        return failures

    async def _finish(self) -> None:
        """Publish or release the remaining deliveries, so that other relays do not wait for their leases to end."""
        with suppress(DatabaseUnavailable):
            while self._handed_over and self.connected and (batch := self._take_handed_over()):
                if await self._publish(batch):
                    break
        remaining = [request for request, _ in self._handed_over]
        self._handed_over.clear()
        if remaining:
            with suppress(DatabaseUnavailable):
                await self._outbox.release(remaining)


def _outgoing(request: DeliveryRequested, span: Span) -> OutgoingMessage:
    body, headers = request.model_dump_json().encode(), request.headers()
    if span.traceparent is not None:
        headers[TRACEPARENT_HEADER] = span.traceparent
    return OutgoingMessage(topology.NOTIFICATIONS, request.channel.value, body, headers)
