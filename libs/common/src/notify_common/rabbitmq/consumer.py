"""The senders' subscription, which acks in batches: see `docs/decisions/0013-senders-without-faststream.md`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from faststream.rabbit import RabbitBroker
from typing_extensions import override

from notify_common.rabbitmq.acknowledgements import Acknowledger
from notify_common.rabbitmq.connection import open_channel
from notify_common.rabbitmq.dead_letters import dead_letter_failed
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.subscription import Subscription


@dataclass(slots=True)
class Message:
    """A received message."""

    body: bytes
    headers: Mapping[str, Any]
    message_id: str | None


class BatchingConsumer(Subscription):
    """A subscription that handles up to `prefetch` messages concurrently and acks them in batches."""

    def __init__(
        self,
        broker: RabbitBroker,
        queue: str,
        *,
        handle: Callable[[Message], Awaitable[None]],
        prefetch: int,
        publisher: ConfirmedPublisher,
        graceful_timeout: float,
        ready: asyncio.Event,
    ) -> None:
        """Create the consumer, which does not start, or start again, while `ready` is not set."""
        super().__init__(queue, publisher, graceful_timeout=graceful_timeout)
        self._ready = ready
        self._broker = broker
        self._handle = handle
        self._prefetch = prefetch
        self._acknowledger = Acknowledger()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @override
    async def _start(self) -> Channel:
        # Messages that cannot be handled yet would be redelivered at each lost connection, until RabbitMQ's delivery
        # limit dead-letters them.
        await self._ready.wait()
        await (await self._broker.connect()).connected.wait()
        self._channel = channel = await open_channel(self._broker, publisher_confirms=False)
        await channel.basic_qos(prefetch_count=self._prefetch)
        await channel.basic_consume(self.queue, self._receive)
        return channel

    @override
    async def _finish(self) -> None:
        await self._idle.wait()

    @override
    async def _close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _receive(self, delivered: DeliveredMessage) -> None:
        tag, channel = delivered.delivery_tag, delivered.channel
        assert tag is not None and isinstance(channel, Channel)  # noqa: S101, PT018 - true for every delivery
        properties = delivered.header.properties
        message = Message(delivered.body, properties.headers or {}, properties.message_id)
        self._running += 1
        self._idle.clear()
        try:
            try:
                await self._handle(message)
            except Exception as error:  # noqa: BLE001 - it is logged, and stored with the dead letter
                if not await dead_letter_failed(self._publisher, message, error, queue=self.queue):
                    await self._acknowledger.reject(channel, tag)
                    return
            await self._acknowledger.ack(channel, tag)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
