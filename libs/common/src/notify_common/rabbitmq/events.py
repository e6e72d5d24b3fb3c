"""Publish status changes to the subscribers of events."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import MAX_CHANGES, DeliveryStatus, StatusChange, StatusChanges
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors, connect
from notify_common.runtime.outage import Outage

log = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds
STOP_TIMEOUT = 1.0  # seconds to publish the waiting changes when the process stops
# Changes that may wait to be published; further ones are dropped. A change usually takes 1.4 KB of memory, and at
# most 3.5 KB, because the contract limits its texts.
MAX_WAITING = 10_000


class EventPublisher:
    """Publishes committed status changes in the background.

    Events may be lost: they are published without confirms, and new ones are dropped while too many are waiting. An
    empty message then informs subscribers that some were dropped. Events have their own connection, because RabbitMQ
    blocks publishing connections during an alarm, which would also block the acks on a shared connection.
    """

    def __init__(self, settings: RabbitSettings, role: str) -> None:
        self._settings = settings
        self._role = f"{role}.events"
        self._waiting: asyncio.Queue[Sequence[StatusChange]] = asyncio.Queue()
        self._waiting_count = 0
        self._dropped = self._dropped_reported = 0
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    def publish(self, changes: Sequence[StatusChange]) -> None:
        """Publish committed changes in the background, and return at once."""
        if log.isEnabledFor(logging.DEBUG):
            for change in changes:
                log.debug("status is %s", change.status, extra=change.model_dump(mode="json", exclude={"status"}))
        if self._waiting_count + len(changes) > MAX_WAITING:
            self._dropped += len(changes)
        elif changes:
            self._waiting_count += len(changes)
            self._waiting.put_nowait(changes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Publish events in the background until the context ends.

        The yielded task ends earlier only if there is a bug. Nothing more would then be published, so the caller must
        watch it.
        """
        worker = asyncio.create_task(self._publish_waiting())
        try:
            yield worker
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self._waiting.join()
            worker.cancel()
            await asyncio.wait({worker})
            await self._disconnect()

    async def _publish_waiting(self) -> None:
        outage = Outage(log, "events cannot be published")
        while True:
            changes = await self._waiting.get()
            await outage.retry(partial(self._publish_or_disconnect, changes), BrokerUnavailable)
            self._waiting_count -= len(changes)
            self._waiting.task_done()

    async def _publish_or_disconnect(self, changes: Sequence[StatusChange]) -> None:
        try:
            with broker_errors():
                if self._connection is None:
                    self._connection = await connect(self._settings, self._role)
                async with asyncio.timeout(TIMEOUT):
                    await self._publish_by_routing_key(self._connection, changes)
        except BrokerUnavailable:
            await self._disconnect()
            raise

    async def _publish_by_routing_key(self, connection: AbstractConnection, changes: Sequence[StatusChange]) -> None:
        by_kind: defaultdict[tuple[Channel, DeliveryStatus], list[StatusChange]] = defaultdict(list)
        for change in changes:
            by_kind[change.channel, change.status].append(change)
        exchange = self._exchange or await self._open_exchange(connection)
        for (channel, status), alike in by_kind.items():
            for first in range(0, len(alike), MAX_CHANGES):
                message = _message(alike[first : first + MAX_CHANGES])
                await exchange.publish(message, f"{channel}.{status}", mandatory=False)
        if (dropped := self._dropped) > self._dropped_reported:
            await exchange.publish(_message(()), topology.DROPPED_ROUTING_KEY, mandatory=False)
            self._dropped_reported = dropped

    async def _open_exchange(self, connection: AbstractConnection) -> AbstractExchange:
        channel = await connection.channel(publisher_confirms=False)
        self._exchange = await channel.get_exchange(topology.EVENTS.name, ensure=False)
        return self._exchange

    async def _disconnect(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with suppress(BrokerUnavailable), broker_errors():
                async with asyncio.timeout(TIMEOUT):
                    await connection.close()


def _message(changes: Sequence[StatusChange]) -> aio_pika.Message:
    return aio_pika.Message(
        StatusChanges(changes=tuple(changes)).model_dump_json().encode(),
        content_type="application/json",
        message_id=str(uuid4()),
    )
