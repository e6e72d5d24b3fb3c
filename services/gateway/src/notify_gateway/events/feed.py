"""What is told on `notifications.events`, heard through a queue of this process's own while somebody wants to know."""

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
KEPT_MESSAGES = 10_000  # in the queue; what comes past them is dropped
TIMEOUT = 5.0  # seconds
PAUSE = 0.02  # seconds between two groups: what arrives meanwhile is looked up together


class EventFeed:
    """Hears all changes of status, for as long as `run` does.

    RabbitMQ drops what it tells while nobody hears it: `began` is called when it is heard (again), `lost` when nothing
    is heard any more, `missed` when a publisher says that it has dropped some.
    """

    def __init__(
        self,
        settings: RabbitSettings,
        role: str,
        receive: Callable[[Sequence[StatusChange]], Awaitable[None]],
        *,
        began: Callable[[], None],
        lost: Callable[[], None],
        missed: Callable[[], None],
    ) -> None:
        self._url = settings.amqp_url(f"{role}.live")
        self._queue = f"{topology.EVENTS.name}.{role}"
        self._receive = receive
        self._began = began
        self._lost = lost
        self._missed = missed

    async def run(self) -> None:
        """Hear, and connect again, until cancelled. The queue goes with its connection."""
        outage = Outage(log, "events are not heard")
        while True:
            try:
                with broker_errors():
                    await self._hear(outage)
                wait = outage.failed("the queue is gone")
            except BrokerUnavailable as away:
                wait = outage.failed(away)
            await asyncio.sleep(wait)

    async def _hear(self, outage: Outage) -> None:
        arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        async with asyncio.timeout(TIMEOUT):
            connection = await aio_pika.connect(self._url)
        try:
            async with asyncio.timeout(TIMEOUT):
                channel = await connection.channel(publisher_confirms=False)
                await channel.set_qos(prefetch_count=PREFETCH)
                underlay = await channel.get_underlay_channel()
                _when_ended(underlay, lambda: arrived.put_nowait(None))
                queue = await channel.declare_queue(
                    f"{self._queue}.{uuid4()}",
                    exclusive=True,
                    auto_delete=True,
                    arguments={"x-max-length": KEPT_MESSAGES},
                )
                await queue.bind(topology.EVENTS.name, "#")
                await queue.consume(arrived.put)
            outage.ended()
            self._began()
            try:
                while messages := await _next(arrived):
                    told = [_changes(message) for message in messages]
                    await self._receive([change for changes in told for change in changes])
                    if not all(told):
                        self._missed()
                    await messages[-1].ack(multiple=True)
                    await asyncio.sleep(PAUSE)
            finally:
                self._lost()
        finally:
            with suppress(BrokerUnavailable), broker_errors():
                async with asyncio.timeout(TIMEOUT):
                    await connection.close()


def _when_ended(channel: AbstractChannel, call: Callable[[], None]) -> None:
    """Call when no message comes any more: with the channel, or because somebody has deleted the queue."""
    channel.closing.add_done_callback(lambda _: call())
    channel.on_consumer_cancel_callbacks.add(lambda _: call())


async def _next(
    arrived: "asyncio.Queue[AbstractIncomingMessage | None]",
) -> list[AbstractIncomingMessage]:
    """All that has arrived, at least one; none at the end."""
    messages = [await arrived.get()]
    while not arrived.empty():
        messages.append(arrived.get_nowait())
    return [] if None in messages else [message for message in messages if message is not None]


def _changes(message: AbstractIncomingMessage) -> Sequence[StatusChange]:
    try:
        return StatusChanges.model_validate_json(message.body).changes
    except ValidationError:
        log.warning("event is unreadable", extra={"message_id": message.message_id})
        return ()  # as if it had been dropped
