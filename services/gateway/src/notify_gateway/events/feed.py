"""Consume `notifications.events` through a queue of this process, which exists while somebody subscribes.

This uses aio-pika directly: FastStream's robust connection would restore the exclusive queue after every reconnect,
wanted or not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aiormq.abc import AbstractChannel
from notify_common.contracts import topology
from notify_common.contracts.messages import StatusChange, StatusChanges
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors
from notify_common.runtime.outage import Outage
from pydantic import ValidationError

log = logging.getLogger(__name__)

PREFETCH = 500  # messages, of many changes each
MAX_QUEUED_MESSAGES = 10_000  # further ones are dropped
TIMEOUT = 5.0  # seconds
BATCH_INTERVAL = 0.02  # seconds between two batches, so that what arrives in between is looked up together


class EventFeed:
    """Receives all status changes while `run` runs.

    RabbitMQ drops changes while this feed is not connected: `connected` is called when it is (again), `lost` when it no
    longer is, and `missed` when a publisher reports that it has dropped some.
    """

    def __init__(
        self,
        settings: RabbitSettings,
        role: str,
        receive: Callable[[Sequence[StatusChange]], Awaitable[None]],
        *,
        connected: Callable[[], None],
        lost: Callable[[], None],
        missed: Callable[[], None],
    ) -> None:
        self._url = settings.amqp_url(f"{role}.live")
        self._queue = f"{topology.EVENTS.name}.{role}"
        self._receive = receive
        self._connected = connected
        self._lost = lost
        self._missed = missed

    async def run(self) -> None:
        """Consume, and reconnect after a loss, until cancelled. The queue is deleted with its connection."""
        outage = Outage(log, "events are not heard")
        while True:
            try:
                with broker_errors():
                    await self._consume(outage)
                wait = outage.failed("the queue is gone")
            except BrokerUnavailable as unavailable:
                wait = outage.failed(unavailable)
            await asyncio.sleep(wait)

    async def _consume(self, outage: Outage) -> None:
        arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        async with asyncio.timeout(TIMEOUT):
            connection = await aio_pika.connect(self._url)
        try:
            async with asyncio.timeout(TIMEOUT):
                channel = await connection.channel(publisher_confirms=False)
                await channel.set_qos(prefetch_count=PREFETCH)
                underlay = await channel.get_underlay_channel()
                _on_end(underlay, lambda: arrived.put_nowait(None))
                queue = await channel.declare_queue(
                    f"{self._queue}.{uuid4()}",
                    exclusive=True,
                    auto_delete=True,
                    arguments={"x-max-length": MAX_QUEUED_MESSAGES},
                )
                await queue.bind(topology.EVENTS.name, "#")
                await queue.consume(arrived.put)
            outage.ended()
            self._connected()
            try:
                while messages := await _next_batch(arrived):
                    per_message = [_changes(message) for message in messages]
                    await self._receive([change for changes in per_message for change in changes])
                    if not all(per_message):
                        self._missed()
                    await messages[-1].ack(multiple=True)
                    await asyncio.sleep(BATCH_INTERVAL)
            finally:
                self._lost()
        finally:
            with suppress(BrokerUnavailable), broker_errors():
                async with asyncio.timeout(TIMEOUT):
                    await connection.close()


def _on_end(channel: AbstractChannel, call: Callable[[], None]) -> None:
    """Call when no further message can arrive, because the channel is closed or the queue is deleted."""
    channel.closing.add_done_callback(lambda _: call())
    channel.on_consumer_cancel_callbacks.add(lambda _: call())


async def _next_batch(arrived: "asyncio.Queue[AbstractIncomingMessage | None]") -> list[AbstractIncomingMessage]:
    """Return all messages that have arrived, at least one; an empty list at the end."""
    messages = [await arrived.get()]
    while not arrived.empty():
        messages.append(arrived.get_nowait())
    return [] if None in messages else [message for message in messages if message is not None]


def _changes(message: AbstractIncomingMessage) -> Sequence[StatusChange]:
    try:
        return StatusChanges.model_validate_json(message.body).changes
    except ValidationError:
        log.warning("event is unreadable", extra={"message_id": message.message_id})
        return ()  # the same as dropped changes
