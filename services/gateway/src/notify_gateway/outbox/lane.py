"""A lane of the outbox relay: publish one channel's deliveries, whatever happens to the other channels.

Each lane has its own task, batches and AMQP channel, so that a queue that refuses messages, or never confirms them,
delays only its own channel.

The methods of `Lane` begin with the normal path, in the order of calls: from `hand_over`, right after a commit, to
the delete of the outbox row. Then come failures, deliveries that the relay has found by polling, and shutdown.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.contracts.trace_context import TRACEPARENT_HEADER
from notify_common.errors import PublishFailed, PublishRefused
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import Span, Tracing
from notify_database.errors import DatabaseUnavailable, DataRejected

from notify_gateway.metrics import GatewayMetrics
from notify_gateway.outbox.lease import RENEW_INTERVAL, Lease, lease_clock
from notify_gateway.outbox.skipping_outbox import SkippingOutbox
from notify_gateway.outbox.store import Held

log = logging.getLogger(__name__)

# Deliveries whose confirms are awaited together. If a queue confirms nothing, RabbitMQ stops reading the connection
# after about 400 of them, and all lanes share the connection.
BATCH_SIZE = 200
BATCH_BYTES = 1024 * 1024
MAX_HANDED_OVER = 4_000  # deliveries; bounds for each lane, so that no channel takes the room of another
MAX_HANDED_OVER_BYTES = 5 * 1024 * 1024  # the same
DELIVERY_BYTES = 1_000  # roughly what a delivery takes besides its texts
CONNECTION_INTERVAL = 0.5  # seconds between checks whether the lane may publish
REFUSED_INTERVAL = 1.0  # seconds between batches while the queue refuses all of them
DELETE_INTERVAL = 0.05  # seconds between deletes, each of which is a transaction
MAX_CONFIRMED = 1_000  # deliveries whose rows are not deleted yet; after a crash, they are published again
QUIET = 60.0  # seconds without a refusal after which refusals are reported as resolved


class Lane:
    """Publishes the deliveries of one channel, and deletes their outbox rows after the broker confirms them."""

    def __init__(
        self,
        channel: Channel,
        publisher: ConfirmedPublisher,
        outbox: SkippingOutbox,
        metrics: GatewayMetrics,
        tracing: Tracing,
        *,
        may_publish: Callable[[], bool],
        on_room: Callable[[Channel], object],
    ) -> None:
        self.channel = channel
        self._publisher = publisher
        self._outbox = outbox
        self._metrics = metrics
        self._tracing = tracing
        self._may_publish = may_publish
        self._on_room = on_room
        self._handed_over: deque[Held] = deque()
        self._handed_over_bytes = 0
        self._due: deque[Held] = deque()
        self._wake = asyncio.Event()
        self._in_flight: list[Held] = []  # the batch that is being published, with the leases that its rows have now
        self._confirms_are_late = False  # the broker has not confirmed this batch for a while
        self._nothing_confirmed = False  # the broker confirmed nothing of the last batch
        self._confirmed: list[Held] = []  # their rows are to be deleted
        self._tasks = asyncio.TaskGroup()  # entered by `run`
        self._deleting: asyncio.Task[None] | None = None
        self._delete_failed = False  # the last delete failed, and is being retried
        self._finished = False
        self._last_refusal = 0.0
        self._database_outage = Outage(log, f"the outbox is unavailable to the channel {channel}")
        self._publish_outage = Outage(
            log, f"RabbitMQ is not confirming deliveries over {channel}, so they stay in the outbox"
        )

    def may_hand_over(self, count: int, size: int) -> bool:
        """Return whether `count` deliveries of `size` bytes may be handed over: they fit, and can soon be published."""
        return (
            not (self._confirms_are_late or self._nothing_confirmed or self._finished)
            and self._may_publish()
            and len(self._handed_over) + count <= MAX_HANDED_OVER
            and self._handed_over_bytes + size <= MAX_HANDED_OVER_BYTES
        )

    def hand_over(self, request: DeliveryRequested, lease: Lease) -> None:
        """Queue a newly committed delivery."""
        self._handed_over.append(Held(request, lease))
        self._handed_over_bytes += delivery_size(request)
        self._wake.set()

    async def run(self, drain: asyncio.Event) -> None:
        """Publish until `drain` is set, and then publish or release the remaining deliveries."""
        async with self._tasks:
            while not drain.is_set():
                wait = await self._publish_next() if self._may_publish() else CONNECTION_INTERVAL
                if wait > 0:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await drain.wait()
            await self._finish()

    async def _publish_next(self) -> float:
        """Publish the next batch once there is one. Return the seconds until the batch after it may begin.

        After a failure, they delay the next try. Otherwise, they let more deliveries join the next batch.
        """
        self._wake.clear()
        began = lease_clock()
        if not (batch := self._next_batch()):
            if not self._due and not self._handed_over:
                await self._wake.wait()
            return 0.0
        wait = await self._publish(batch)
        # Nothing can join a full batch, and waiting would limit the rate to one full batch per interval.
        if not wait and len(self._due) + len(self._handed_over) < BATCH_SIZE:
            wait = began + interval_after(len(batch)) - lease_clock()
        if not self._due:
            self._on_room(self.channel)
        return wait

    def _next_batch(self) -> list[Held]:
        # The two kinds share a batch, so that neither starves the other.
        due, _ = _take(self._due, BATCH_SIZE - min(len(self._handed_over), BATCH_SIZE // 2))
        handed_over, size = _take(self._handed_over, BATCH_SIZE - len(due))
        self._handed_over_bytes -= size
        return [*due, *handed_over]

    async def _publish(self, batch: list[Held]) -> float:
        """Publish the batch, and update its rows. Return the seconds to wait because of failures, or 0."""
        self._in_flight = batch
        publishing = asyncio.create_task(self._publish_together(batch))
        failures = await self._await_confirms(publishing)
        self._metrics.observe_published_batch(len(batch))
        batch, self._in_flight = self._in_flight, []  # its leases may have been renewed
        return await self._update_rows(list(zip(batch, failures, strict=True)))

    async def _publish_together(self, batch: Sequence[Held]) -> list[PublishFailed | None]:
        """Publish the batch with one write. Return None for each delivery that was confirmed, and else the failure."""
        spans = [self._tracing.begin(f"publish {self.channel}", each.traceparent, "producer") for each, _ in batch]
        messages = [_outgoing(request, span) for (request, _), span in zip(batch, spans, strict=True)]
        with self._tracing.group("publish deliveries", (span.traceparent for span in spans)):
            failures = await self._publisher.publish(messages, may_write=self._may_write)
        for span, failure in zip(spans, failures, strict=True):
            if failure is not None:
                span.fail(str(failure))
            span.end()
        return failures

    def _may_write(self) -> bool:
        """Return whether enough of each lease on the batch is left to write the batch to the broker."""
        now = lease_clock()
        return all(lease.is_usable(now) for _, lease in self._in_flight)

    async def _await_confirms(self, publishing: asyncio.Task[list[PublishFailed | None]]) -> list[PublishFailed | None]:
        """Return the result of `publishing`. While there is none, renew the batch's leases every `RENEW_INTERVAL`."""
        try:
            while not (await asyncio.wait({publishing}, timeout=RENEW_INTERVAL))[0]:
                self._confirms_are_late = True
                await self._renew_leases()
        finally:
            publishing.cancel()
            self._confirms_are_late = False
        return publishing.result()

    async def _update_rows(self, outcomes: Sequence[tuple[Held, PublishFailed | None]]) -> float:
        """Begin to delete the confirmed rows; end the leases of the others. Return the seconds to wait, or 0."""
        confirmed = [held for held, failure in outcomes if failure is None]
        if confirmed:
            self._metrics.published[self.channel].inc(len(confirmed))
            # Rows are deleted only after their confirms, so a crash in between repeats messages but loses none.
            self._confirmed += confirmed
            if self._deleting is None or self._deleting.done():
                self._deleting = self._tasks.create_task(self._delete_confirmed())
            elif len(self._confirmed) > MAX_CONFIRMED:
                await self._deleting
        self._nothing_confirmed = not confirmed
        if failed := [(held, failure) for held, failure in outcomes if failure is not None]:
            return await self._return_unconfirmed(failed)
        if lease_clock() > self._last_refusal + QUIET:
            self._publish_outage.ended()
        return 0.0

    async def _delete_confirmed(self) -> None:
        """Delete the rows of confirmed deliveries until none is left; each delete has those of several batches.

        Deletes are retried during an outage, because giving up would repeat the messages.
        """
        while self._confirmed:
            await self._database_outage.retry(self._delete_once, DatabaseUnavailable)
            await asyncio.sleep(DELETE_INTERVAL)

    async def _delete_once(self) -> None:
        # This includes rows that were confirmed since the last try, because their leases may end as well.
        rows = list(self._confirmed)
        try:
            await self._outbox.delete(rows)
        except DatabaseUnavailable:
            self._delete_failed = True
            raise
        del self._confirmed[: len(rows)]
        self._delete_failed = False

    async def _renew_leases(self) -> None:
        # The queue may confirm nothing, or the broker may block publishers, for example during a memory alarm. It may
        # still accept these messages later, so the leases are renewed to keep other relays from publishing them.
        # If PostgreSQL's response is lost, a row may have either lease, so the batch keeps both.
        self._in_flight = [Held(request, lease.with_pending(lease.next_lease())) for request, lease in self._in_flight]
        with suppress(DatabaseUnavailable, DataRejected):
            still_held = await self._outbox.renew(self._in_flight)
            self._in_flight = [
                Held(request, lease.next_lease() if request.delivery_id in still_held else lease.lost())
                for request, lease in self._in_flight
            ]

    async def _return_unconfirmed(self, failed: Sequence[tuple[Held, PublishFailed]]) -> float:
        """End the leases of rows whose deliveries were not confirmed, so that a relay takes and publishes them again.

        Return the seconds to wait: more than 0 during an outage, or if the queue has refused the whole batch.
        """
        wait = self._publish_outage.failed(failed[0][1])
        refused = [held for held, failure in failed if isinstance(failure, PublishRefused)]
        interrupted = [held for held, failure in failed if not isinstance(failure, PublishRefused)]
        try:
            if refused:
                self._last_refusal = lease_clock()
                await self._outbox.postpone(refused)
            if interrupted:
                await self._outbox.release(interrupted)
        except (DatabaseUnavailable, DataRejected) as error:
            return self._database_outage.failed(error)
        self._database_outage.ended()
        if interrupted:
            return wait
        return REFUSED_INTERVAL if self._nothing_confirmed else 0.0

    @property
    def may_add_due(self) -> bool:
        """True if no due deliveries are waiting in the lane, and it can publish and delete more.

        While deletes fail, the leases of confirmed rows may end, and a poll would then take these rows again.
        """
        blocked = self._due or self._confirms_are_late or self._delete_failed or self._finished
        return not blocked and self._may_publish()

    def add_due(self, held: Sequence[Held]) -> None:
        """Queue due deliveries that were taken from the table."""
        self._due.extend(held)
        self._wake.set()

    def wake(self) -> None:
        """Make `run` check whether it must drain the lane."""
        self._wake.set()

    async def _finish(self) -> None:
        """Publish or release the remaining deliveries, so that other relays do not wait for their leases to end."""
        while self._may_publish() and not self._nothing_confirmed and (batch := self._next_batch()):
            await self._publish(batch)
        self._finished = True  # deliveries committed from now on are left to other relays
        if remaining := [*self._due, *self._handed_over]:
            with suppress(DatabaseUnavailable, DataRejected):
                await self._outbox.release(remaining)


def delivery_size(request: DeliveryRequested) -> int:
    """Return roughly how much memory a delivery takes, in bytes."""
    content = request.content
    html = None if content.email is None else content.email.html
    return DELIVERY_BYTES + sys.getsizeof(content.message) + (0 if html is None else sys.getsizeof(html))


def _take(queue: deque[Held], most: int) -> tuple[list[Held], int]:
    """Remove up to `most` deliveries; return them, and the bytes that are no longer in the queue."""
    taken: list[Held] = []
    size, now = 0, lease_clock()
    while queue and len(taken) < most and size < BATCH_BYTES:
        held = queue.popleft()
        size += delivery_size(held.request)
        # If the lease ends soon, another relay may take the row, so the row is left to whichever relay polls next.
        if held.lease.is_usable(now):
            taken.append(held)
    return taken, size


def _outgoing(request: DeliveryRequested, span: Span) -> OutgoingMessage:
    body, headers = request.body(), request.headers()
    if span.traceparent is not None:
        headers[TRACEPARENT_HEADER] = span.traceparent
    return OutgoingMessage(topology.NOTIFICATIONS, request.channel.value, body, headers)
