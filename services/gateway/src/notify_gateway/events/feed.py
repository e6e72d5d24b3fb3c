"""Consume `notifications.events` through an exclusive queue, which exists only while there are subscribers.

This module uses aio-pika directly, because FastStream's robust connection would restore the exclusive queue after every
reconnect, even if there are no subscribers left.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from notify_common.contracts import topology
from notify_common.contracts.messages import MAX_CHANGES_BYTES, StatusChange, StatusChanges
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors, connect
from notify_common.runtime.outage import Outage

log = logging.getLogger(__name__)

PREFETCH = 100  # messages; each carries up to `MAX_CHANGES` changes
MAX_BATCH_BYTES = 1024 * 1024  # one batch of messages; the changes that they carry take six times as much memory
# Beyond these limits, RabbitMQ drops the oldest messages. A message of 500 changes usually has 0.1 MiB, and at most 2.
MAX_QUEUED_MESSAGES = 10_000
MAX_QUEUED_BYTES = 64 * 1024 * 1024
TIMEOUT = 5.0  # seconds
BATCH_INTERVAL = 0.02  # seconds between batches; one database query serves all changes in a batch
BIND_INTERVAL = 10.0  # seconds; if the exchange was deleted, binding the queue again closes the channel


class EventFeed:
    """Passes all status changes to `receive` until `run` is cancelled.

    RabbitMQ drops changes while this feed is disconnected. The feed calls `connected` after each connect, `lost` after
    each disconnect, and `missed` when a publisher reports that it has dropped changes.
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
        self._settings = settings
        self._role = f"{role}.live"
        self._queue = f"{topology.EVENTS.name}.{role}"
        self._receive = receive
        self._connected = connected
        self._lost = lost
        self._missed = missed

    async def run(self) -> None:
        """Consume until cancelled, reconnecting after failures. RabbitMQ deletes the queue when we disconnect."""
        outage = Outage(log, "the event feed is disconnected")
        while True:
            try:
                with broker_errors():
                    await self._consume(outage)
                wait = outage.failed("the queue was deleted")
            except BrokerUnavailable as unavailable:
                wait = outage.failed(unavailable)
            await asyncio.sleep(wait)

    async def _consume(self, outage: Outage) -> None:
        arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        connection = await connect(self._settings, self._role)
        try:
            async with asyncio.timeout(TIMEOUT):
                channel = await connection.channel(publisher_confirms=False)
                await channel.set_qos(prefetch_count=PREFETCH)
                underlay = await channel.get_underlay_channel()
                # None ends the feed, because no message can arrive after the channel is closed or the queue is deleted.
                underlay.closing.add_done_callback(lambda _: arrived.put_nowait(None))
                underlay.on_consumer_cancel_callbacks.add(lambda _: arrived.put_nowait(None))
                name = f"{self._queue}.{uuid4()}"
                limits: Any = {"x-max-length": MAX_QUEUED_MESSAGES, "x-max-length-bytes": MAX_QUEUED_BYTES}
                queue = await channel.declare_queue(name, exclusive=True, auto_delete=True, arguments=limits)
                await queue.bind(topology.EVENTS.name, "#")
                await queue.consume(arrived.put)
            outage.ended()
            self._connected()
            binding = asyncio.create_task(_bind_repeatedly(queue))
            try:
                while messages := await _next_batch(arrived):
                    per_message = [_changes(message) for message in messages]
                    await self._receive([change for changes in per_message for change in changes])
                    if not all(per_message):
                        self._missed()
                    await messages[-1].ack(multiple=True)
                    await asyncio.sleep(BATCH_INTERVAL)
            finally:
                binding.cancel()
                self._lost()
        finally:
            with suppress(BrokerUnavailable), broker_errors():
                async with asyncio.timeout(TIMEOUT):
                    await connection.close()


async def _bind_repeatedly(queue: AbstractQueue) -> None:
    """Restore the binding if it was deleted. If the exchange was, RabbitMQ closes the channel, which ends the feed."""
    with suppress(BrokerUnavailable), broker_errors():
        while True:
            await asyncio.sleep(BIND_INTERVAL)
            await queue.bind(topology.EVENTS.name, "#", timeout=TIMEOUT)


async def _next_batch(arrived: "asyncio.Queue[AbstractIncomingMessage | None]") -> list[AbstractIncomingMessage]:
    """Wait for a message; return it with others that have arrived, or an empty list if the feed has ended."""
    message = await arrived.get()
    messages: list[AbstractIncomingMessage] = []
    room = MAX_BATCH_BYTES
    while message is not None:
        messages.append(message)
        room -= len(message.body)
        if room <= 0 or arrived.empty():
            return messages
        message = arrived.get_nowait()
    return []


def _changes(message: AbstractIncomingMessage) -> Sequence[StatusChange]:
    if len(message.body) <= MAX_CHANGES_BYTES:
        with suppress(ValueError):
            return StatusChanges.from_body(message.body).changes
    log.warning("received an unreadable event message", extra={"message_id": message.message_id})
    return ()  # the caller then reports dropped changes
