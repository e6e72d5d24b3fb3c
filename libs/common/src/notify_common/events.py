"""Tells whoever listens that deliveries have a new status."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange

from notify_common import topology
from notify_common.channels import Channel
from notify_common.lasting_fault import LastingFault
from notify_common.messages import DeliveryStatus, StatusChange, StatusChanges
from notify_common.rabbitmq import BrokerAway, RabbitSettings, broker_errors

log = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds
LAST_WORDS_TIMEOUT = 1.0  # seconds
KEPT_CHANGES = 10_000  # told and not published yet; what comes past them is dropped


class EventPublisher:
    """Publishes changes of status beside the work that has committed them.

    Events are news, not state: there are no confirms, and what can not be published is dropped in the end, which is
    told afterwards. They have a connection of their own: under an alarm RabbitMQ blocks that of a publisher, and with
    it the acks that it carries.
    """

    def __init__(self, settings: RabbitSettings, role: str) -> None:
        self._url = settings.amqp_url(f"{role}.events")
        self._told: asyncio.Queue[Sequence[StatusChange]] = asyncio.Queue()
        self._kept = 0
        self._dropped = self._dropped_told = 0
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    def tell(self, changes: Sequence[StatusChange]) -> None:
        """Publish what has changed, after its commit, as soon as RabbitMQ takes it."""
        if log.isEnabledFor(logging.DEBUG):
            for change in changes:
                log.debug("status is %s", change.status, extra=change.model_dump(mode="json", exclude={"status"}))
        if self._kept + len(changes) > KEPT_CHANGES:
            self._dropped += len(changes)
        elif changes:
            self._kept += len(changes)
            self._told.put_nowait(changes)

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Publish for as long as the context lasts."""
        publishing = asyncio.create_task(self._publish_all())
        try:
            yield
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_TIMEOUT):
                    await self._told.join()
            publishing.cancel()
            await asyncio.wait({publishing})
            await self._disconnect()

    async def _publish_all(self) -> None:
        fault = LastingFault(log, "events are not published")
        while True:
            changes = await self._told.get()
            while True:
                try:
                    with broker_errors():
                        async with asyncio.timeout(TIMEOUT):
                            await self._publish(changes)
                except BrokerAway as away:
                    await self._disconnect()
                    await asyncio.sleep(fault.occurred(away))
                else:
                    fault.over()
                    break
            self._kept -= len(changes)
            self._told.task_done()

    async def _publish(self, changes: Sequence[StatusChange]) -> None:
        by_kind: defaultdict[tuple[Channel, DeliveryStatus], list[StatusChange]] = defaultdict(list)
        for change in changes:
            by_kind[change.channel, change.status].append(change)
        exchange = self._exchange or await self._connect()
        for (channel, status), alike in by_kind.items():
            await exchange.publish(_message(alike), f"{channel}.{status}", mandatory=False)
        if (dropped := self._dropped) > self._dropped_told:
            await exchange.publish(_message(()), topology.DROPPED_ROUTING_KEY, mandatory=False)
            self._dropped_told = dropped

    async def _connect(self) -> AbstractExchange:
        """Not before there is something to tell."""
        self._connection = await aio_pika.connect(self._url)
        channel = await self._connection.channel(publisher_confirms=False)
        self._exchange = await channel.get_exchange(topology.EVENTS.name, ensure=False)
        return self._exchange

    async def _disconnect(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with suppress(BrokerAway), broker_errors():
                async with asyncio.timeout(TIMEOUT):
                    await connection.close()


def _message(changes: Sequence[StatusChange]) -> aio_pika.Message:
    return aio_pika.Message(
        StatusChanges(changes=tuple(changes)).model_dump_json().encode(),
        content_type="application/json",
        message_id=str(uuid4()),
    )
