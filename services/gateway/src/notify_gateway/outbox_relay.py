"""The outbox relay: publishes committed deliveries, and forgets each only after the broker's confirm."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress

from aio_pika.abc import AbstractConnection
from faststream.rabbit import RabbitBroker
from notify_common import topology
from notify_common.confirmed_publisher import ConfirmedPublisher, Outgoing, PublishFailed
from notify_common.events import EventPublisher
from notify_common.lasting_fault import LastingFault
from notify_common.messages import DeliveryRequested
from notify_common.tracing import TRACEPARENT_HEADER, UNTRACED, Span, Tracing
from notify_database.engine import DatabaseAway

from notify_gateway.metrics import GatewayMetrics
from notify_gateway.outbox import LEASE, Outbox

log = logging.getLogger(__name__)

PUBLISH_WINDOW = 200  # messages whose confirms are awaited together
BATCH_INTERVAL = 0.01  # seconds; what follows closely on a batch shares the next one's write and delete
HAND_OVER_BOUND = 10_000  # deliveries
POLL_INTERVAL = 0.5  # seconds between looks for due rows that nobody holds
CONNECTION_INTERVAL = 0.5  # seconds between looks whether RabbitMQ is back
LEASE_SECONDS = LEASE.total_seconds()
# What must be left of a lease to begin a publish in it, and how often it is renewed while the publish is under way.
LEASE_RESERVE = LEASE_SECONDS / 3
RENEW_INTERVAL = LEASE_RESERVE / 2


class OutboxRelay:
    """Publishes what this process has just committed, and what no relay holds any more."""

    def __init__(
        self,
        broker: RabbitBroker,
        publisher: ConfirmedPublisher,
        outbox: Outbox,
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
        self._database_fault = LastingFault(log, "the outbox is not reachable")
        self._publish_fault = LastingFault(log, "deliveries are not confirmed, they stay in the outbox")

    @property
    def connected(self) -> bool:
        """Whether RabbitMQ can be published to, as far as is known."""
        return self._connection is not None and self._connection.connected.is_set()

    def has_room_for(self, count: int) -> bool:
        """Whether `count` deliveries may be handed over; with the broker away they wait better in the table."""
        return self.connected and len(self._handed_over) + count <= HAND_OVER_BOUND

    def hand_over(self, requests: Sequence[DeliveryRequested], lease_began: float) -> None:
        """Take just-committed deliveries whose leases began at `lease_began` (monotonic seconds)."""
        lease_ends = lease_began + LEASE_SECONDS
        self._handed_over.extend((request, lease_ends) for request in requests)
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop`; the broker has been prepared and may go away at any time."""
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
                    wait = await self._publish(batch) or next_batch_at - time.monotonic()
                self._database_fault.over()
            except DatabaseAway as away:
                wait = self._database_fault.occurred(away)
            if wait > 0:
                await asyncio.wait({stopping}, timeout=wait)
        await self._give_back()

    async def _next_batch(self) -> list[DeliveryRequested]:
        """What was handed over; between times, and when nothing was, what is due and not held by anyone."""
        if time.monotonic() < self._next_poll:
            if not self._handed_over:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._next_poll - time.monotonic()):
                        await self._wake.wait()
            return self._take_handed_over()
        due = await self._outbox.take_due(PUBLISH_WINDOW)
        if len(due.requests) + len(due.ended) < PUBLISH_WINDOW:
            self._next_poll = time.monotonic() + POLL_INTERVAL
        self._events.tell(due.ended)
        # Together, so that neither starves the other.
        return [*due.requests, *self._take_handed_over()]

    def _take_handed_over(self) -> list[DeliveryRequested]:
        batch: list[DeliveryRequested] = []
        too_late = time.monotonic() + LEASE_RESERVE
        while self._handed_over and len(batch) < PUBLISH_WINDOW:
            request, lease_ends = self._handed_over.popleft()
            # Dropped where the lease is about to end: another relay may take the row, so it must not go out here.
            if lease_ends > too_late:
                batch.append(request)
        return batch

    async def _publish(self, batch: Sequence[DeliveryRequested]) -> float:
        """Publish the batch and delete what is confirmed; how long to wait then, in seconds: 0 where all was."""
        spans = [self._tracing.begin(f"publish {each.channel}", each.traceparent, "producer") for each in batch]
        messages = [_outgoing(request, span) for request, span in zip(batch, spans, strict=True)]
        publishing = asyncio.create_task(self._publish_together(messages, spans))
        while not (await asyncio.wait({publishing}, timeout=RENEW_INTERVAL))[0]:
            # Blocked (a memory alarm): nobody else may publish what the broker is about to take.
            with suppress(DatabaseAway):
                await self._outbox.renew(batch)
        outcomes = list(zip(batch, publishing.result(), strict=True))
        confirmed = [request for request, failure in outcomes if failure is None]
        failed = [request for request, failure in outcomes if failure is not None]
        self._metrics.published_together(len(batch))
        for channel, count in Counter(request.channel for request in confirmed).items():
            self._metrics.published[channel].inc(count)
        if confirmed:
            await self._delete(confirmed)
        if not failed:
            self._publish_fault.over()
            return 0.0
        wait = self._publish_fault.occurred(next(failure for _, failure in outcomes if failure is not None))
        await self._outbox.release(failed)
        return wait

    async def _publish_together(
        self, messages: Sequence[Outgoing], spans: Sequence[Span]
    ) -> list[PublishFailed | None]:
        with self._tracing.group("publish deliveries", (span.traceparent for span in spans)):
            failures = await self._publisher.publish(messages)
        for span, failure in zip(spans, failures, strict=True):
            if failure is not None:
                span.fail(str(failure))
            span.end()
        return failures

    async def _delete(self, confirmed: Sequence[DeliveryRequested]) -> None:
        # Only after the confirms: a crash here repeats, never loses. Giving up would repeat all of them.
        while True:
            try:
                await self._outbox.delete(confirmed)
            except DatabaseAway as away:
                await asyncio.sleep(self._database_fault.occurred(away))
            else:
                return

    async def _give_back(self) -> None:
        """Publish what is still handed over, or leave it to the next relay at once instead of when its lease ends."""
        with suppress(DatabaseAway):
            while self._handed_over and self.connected and (batch := self._take_handed_over()):
                if await self._publish(batch):
                    break
        remaining = [request for request, _ in self._handed_over]
        self._handed_over.clear()
        if remaining:
            with suppress(DatabaseAway):
                await self._outbox.release(remaining)


def _outgoing(request: DeliveryRequested, span: Span) -> Outgoing:
    body, headers = request.model_dump_json().encode(), request.headers()
    if span.traceparent is not None:
        headers[TRACEPARENT_HEADER] = span.traceparent
    return Outgoing(topology.NOTIFICATIONS, request.channel.value, body, headers)
