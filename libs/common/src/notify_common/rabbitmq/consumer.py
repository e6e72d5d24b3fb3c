"""Consumes one queue: a handler for each message, acks in groups, what can not be handled to the dead letters."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from faststream.rabbit import RabbitBroker

from notify_common.contracts.messages import DELIVERY_ID_HEADER, NOTIFICATION_ID_HEADER
from notify_common.contracts.trace_context import TRACEPARENT_HEADER, read_traceparent, trace_id
from notify_common.errors import BrokerUnavailable, PoisonMessage
from notify_common.rabbitmq.acknowledgements import Acknowledger
from notify_common.rabbitmq.connection import broker_errors, open_channel
from notify_common.rabbitmq.dead_letters import bury
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.outage import Outage

log = logging.getLogger(__name__)

CHECK_TIMEOUT = 2.0  # seconds
CLOSE_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Message:
    """What was received."""

    body: bytes
    headers: Mapping[str, Any]
    message_id: str | None
    channel: Channel
    delivery_tag: int


class Consumer:
    """Lets `handler` have every message of `queue`, `prefetch` at a time, on a channel of its own.

    A message is acked once its handler returns, and not before all that follows from it is confirmed or committed.
    A handler that raises `PoisonMessage`, or fails by a bug, sends its message to the dead letters, with the reason:
    requeued, it would come back at once, for ever. A handler whose connection is lost is cancelled: its message comes
    again.
    """

    def __init__(
        self,
        broker: RabbitBroker,
        publisher: ConfirmedPublisher,
        queue: str,
        handler: Callable[[Message], Awaitable[None]],
        *,
        prefetch: int,
    ) -> None:
        self.queue = queue
        self._broker = broker
        self._publisher = publisher
        self._handler = handler
        self._prefetch = prefetch
        self._settlements = Acknowledger()
        self._channel: Channel | None = None
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def consuming(self, graceful_timeout: float) -> AsyncIterator[asyncio.Task[None]]:
        """Consume for as long as the context lasts; then let handlers finish for at most `graceful_timeout` seconds.

        The task ends before the context only by a bug.
        """
        consuming = asyncio.create_task(self._consume())
        try:
            yield consuming
        finally:
            consuming.cancel()
            await asyncio.wait({consuming})
            await self._take_no_more()
            with suppress(TimeoutError):
                async with asyncio.timeout(graceful_timeout):
                    await self._idle.wait()
            # What is not settled by now comes again.
            await self._close_channel()

    @property
    def alive(self) -> bool:
        """Whether there is a channel that holds its consumer, as far as is known here."""
        return self._channel is not None and not self._channel.is_closed and bool(self._channel.consumers)

    async def problem(self) -> str | None:
        """Why nothing is consumed, or None where it is.

        An open connection proves nothing: the channel must hold its consumer, the broker must answer and count it.
        """
        channel = self._channel
        if channel is None or channel.is_closed:
            return f"{self.queue}: not connected to RabbitMQ"
        if not channel.consumers:
            return f"{self.queue}: the consumer was cancelled"
        try:
            with broker_errors():
                async with asyncio.timeout(CHECK_TIMEOUT):
                    # Not on the consumer's channel: aiormq closes one on which a call was given up.
                    asking = await open_channel(self._broker, publisher_confirms=False)
                    declared = await asking.queue_declare(self.queue, passive=True)
                    await asking.close()
        except BrokerUnavailable as away:
            return f"{self.queue}: RabbitMQ does not answer ({away})"
        return None if declared.consumer_count else f"{self.queue}: RabbitMQ knows no consumer"

    async def _consume(self) -> None:
        outage = Outage(log, f"nothing is consumed from {self.queue}")
        while True:
            try:
                with broker_errors():
                    ended = await self._start()
                outage.ended()
                await ended.wait()
                wait = outage.failed("the consumer has ended")
                # Where it was the broker's wish, the channel still lives, and so do its handlers.
                await self._idle.wait()
                await self._close_channel()
            except BrokerUnavailable as away:
                wait = outage.failed(away)
            await asyncio.sleep(wait)

    async def _start(self) -> asyncio.Event:
        """Begin to consume; set when that has ended, with the channel or by the broker's wish."""
        await (await self._broker.connect()).connected.wait()
        channel = await open_channel(self._broker, publisher_confirms=False)
        self._channel, ended = channel, asyncio.Event()
        channel.closing.add_done_callback(lambda _: ended.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: ended.set())
        await channel.basic_qos(prefetch_count=self._prefetch)
        await channel.basic_consume(self.queue, self._receive)
        return ended

    async def _take_no_more(self) -> None:
        channel = self._channel
        if channel is None:
            return
        with suppress(BrokerUnavailable), broker_errors():
            for consumer_tag in list(channel.consumers):
                await channel.basic_cancel(consumer_tag, nowait=True)

    async def _close_channel(self) -> None:
        if self._channel is not None:
            with suppress(BrokerUnavailable), broker_errors():
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._channel.close()

    async def _receive(self, delivered: DeliveredMessage) -> None:
        tag = delivered.delivery_tag
        assert tag is not None  # noqa: S101 - every delivery has one
        assert isinstance(delivered.channel, Channel)  # noqa: S101 - aiormq's one class of channels
        properties = delivered.header.properties
        message = Message(delivered.body, properties.headers or {}, properties.message_id, delivered.channel, tag)
        self._running += 1
        self._idle.clear()
        try:
            await self._handle(message)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _handle(self, message: Message) -> None:
        try:
            await self._handler(message)
        except PoisonMessage as poison:
            log.error("message is poison", extra={**self._names(message), "reason": str(poison)})
            await self._to_dead_letters(message, str(poison))
        except Exception as bug:
            log.exception("handler failed", extra=self._names(message))
            await self._to_dead_letters(message, f"bug: {type(bug).__name__}")
        else:
            await self._settlements.ack(message.channel, message.delivery_tag)

    def _names(self, message: Message) -> dict[str, object]:
        """Of a message in the log: its headers tell what it is about even where it can not be read."""
        told = {name: message.headers.get(name) for name in (DELIVERY_ID_HEADER, NOTIFICATION_ID_HEADER)}
        trace = trace_id(read_traceparent(message.headers.get(TRACEPARENT_HEADER)))
        return {"queue": self.queue, "message_id": message.message_id, "trace_id": trace, **told}

    async def _to_dead_letters(self, message: Message, reason: str) -> None:
        try:
            await bury(self._publisher, message.body, queue=self.queue, reason=reason, headers=message.headers)
        except Exception:
            # Such headers, for one, that can be received and not sent. RabbitMQ moves it, without the reason.
            log.exception("reason is not kept", extra=self._names(message))
            await self._settlements.reject(message.channel, message.delivery_tag)
        else:
            await self._settlements.ack(message.channel, message.delivery_tag)
