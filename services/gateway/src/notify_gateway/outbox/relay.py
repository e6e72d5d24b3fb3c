"""The outbox relay, which publishes committed deliveries to RabbitMQ. Each channel has a lane of its own (`lane.py`).

Deliveries come in two ways. `NotificationIntake` leases the outbox rows of `channels_with_room` to this relay when it
stores new deliveries, and calls `hand_over` after the commit. All others are found by polling the table once they are
due: those that were scheduled, that are sent again (an operator's retry, a lost message), for which no lane had room,
that could not be published, or that another relay has left.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from functools import partial

from aio_pika.abc import AbstractConnection
from faststream.rabbit import RabbitBroker
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.errors import DatabaseUnavailable

from notify_gateway.metrics import GatewayMetrics
from notify_gateway.outbox.lane import BATCH_SIZE, Lane, delivery_size
from notify_gateway.outbox.lease import Lease
from notify_gateway.outbox.skipping_outbox import SkippingOutbox
from notify_gateway.outbox.store import Held, OutboxStore

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.5  # seconds between polls of the table for due deliveries


class OutboxRelay:
    """Publishes deliveries that this process has just committed, and due deliveries that no relay has leased."""

    def __init__(
        self,
        broker: RabbitBroker,
        publisher_class: Callable[[RabbitBroker], ConfirmedPublisher],
        outbox: OutboxStore,
        events: EventPublisher,
        metrics: GatewayMetrics,
        tracing: Tracing = UNTRACED,
        *,
        declared: DeclaredTopology | None = None,
    ) -> None:
        """Create the relay; each lane gets its own publisher.

        `declared` is restored after each reconnect to RabbitMQ. A channel whose queue does not match it is not served.
        """
        self._broker = broker
        self._outbox = SkippingOutbox(outbox)
        self._events = events
        self._declared = declared
        self._connection: AbstractConnection | None = None
        self._poll_now, self._reconnected = asyncio.Event(), asyncio.Event()
        self._lanes = {
            channel: Lane(
                channel, publisher_class(broker), self._outbox, metrics, tracing,
                may_publish=partial(self._may_publish, channel),
                on_room=self._poll_if_more_due,
            )
            for channel in Channel
        }  # fmt: skip
        self._more_due: Set[Channel] = frozenset()  # the last poll left due deliveries of these channels
        self._database_outage = Outage(log, "the outbox is unavailable")

    @property
    def connected(self) -> bool:
        """True if the connection to RabbitMQ is open, as far as this process knows."""
        return self._connection is not None and self._connection.connected.is_set()

    @property
    def connection(self) -> AbstractConnection | None:
        """The connection to RabbitMQ, or None if it is not open, as far as this process knows."""
        return self._connection if self.connected else None

    def channels_with_room(self, requests: Sequence[DeliveryRequested]) -> Set[Channel]:
        """Return the channels whose deliveries among `requests` may be handed over; in a broker outage, none may."""
        if not self.connected:
            return frozenset()
        counts, sizes = Counter[Channel](), Counter[Channel]()
        for request in requests:
            counts[request.channel] += 1
            sizes[request.channel] += delivery_size(request)
        return {channel for channel in counts if self._lanes[channel].may_hand_over(counts[channel], sizes[channel])}

    def hand_over(self, requests: Sequence[DeliveryRequested], lease: Lease) -> None:
        """Queue newly committed deliveries, whose outbox rows were leased together."""
        for request in requests:
            self._lanes[request.channel].hand_over(request, lease)

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set, despite outages of RabbitMQ and PostgreSQL. The topology must already exist."""
        connection = self._connection = await self._broker.connect()
        connection.reconnect_callbacks.add(lambda _: self._reconnected.set())
        drain = asyncio.Event()
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._poll_now.set())
        lanes = [asyncio.create_task(lane.run(drain)) for lane in self._lanes.values()]
        tasks = running = {*lanes, asyncio.create_task(self._poll(stop, drain)), asyncio.create_task(self._restore())}
        try:
            while not all(lane.done() for lane in lanes):
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    await task  # raises the exception of a task that has failed
        finally:
            stopping.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _poll(self, stop: asyncio.Event, drain: asyncio.Event) -> None:
        """Take due deliveries for all lanes that have room, once per `POLL_INTERVAL` or as fast as they are published.

        Set `drain` at the end, so that the lanes also publish or release the deliveries taken last.
        """
        while not stop.is_set():
            self._poll_now.clear()
            wait = POLL_INTERVAL
            if self.connected:
                try:
                    await self._take_due()
                    self._database_outage.ended()
                except DatabaseUnavailable as unavailable:
                    self._more_due = frozenset()
                    wait = self._database_outage.failed(unavailable)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._poll_now.wait()
        drain.set()
        for lane in self._lanes.values():
            lane.wake()

    async def _take_due(self) -> None:
        channels = [channel for channel, lane in self._lanes.items() if lane.may_add_due]
        if not channels:
            return
        due = await self._outbox.take_due(BATCH_SIZE, channels)
        self._events.publish(due.ended)
        self._more_due = due.more
        by_channel = defaultdict[Channel, list[Held]](list)
        for held in due.held:
            by_channel[held.request.channel].append(held)
        for channel, of_channel in by_channel.items():
            self._lanes[channel].add_due(of_channel)
        if due.more - by_channel.keys():
            self._poll_now.set()  # all deliveries that were found have ended, so no lane reports that it has room again

    def _poll_if_more_due(self, channel: Channel) -> None:
        if channel in self._more_due:
            self._poll_now.set()

    def _may_publish(self, channel: Channel) -> bool:
        """Return whether RabbitMQ is connected, and the channel's queue and exchange are as declared."""
        mismatches = frozenset[str]() if self._declared is None else self._declared.mismatches
        return self.connected and mismatches.isdisjoint(
            {topology.NOTIFICATIONS.name, topology.delivery_queue_name(channel)}
        )

    async def _restore(self) -> None:
        """Declare the topology again after each reconnect, because RabbitMQ may have come back empty."""
        while True:
            await self._reconnected.wait()
            self._reconnected.clear()
            if self._declared is not None:
                await self._declared.restore()
