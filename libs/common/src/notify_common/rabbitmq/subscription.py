"""The lifecycle of a consumer, independent of the AMQP library that it uses."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import broker_errors
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.queue_probe import QueueProbe
from notify_common.runtime.outage import Outage

log = logging.getLogger(__name__)

CHECK_TIMEOUT = 2.0  # seconds
CLOSE_TIMEOUT = 5.0  # seconds


class Subscription(ABC):
    """A consumer of one queue, which is restarted whenever it ends.

    A message is acked when its handler returns; by then, all its effects must be confirmed or committed. If the
    connection is lost, the handler is cancelled and the message is redelivered. If the handler raises `PoisonMessage`,
    or any unexpected error, the message is dead-lettered, because it would fail each time.
    """

    def __init__(self, queue: str, publisher: ConfirmedPublisher, *, graceful_timeout: float) -> None:
        self.queue = queue
        self._publisher = publisher
        self._graceful_timeout = graceful_timeout
        self._channel: Channel | None = None
        self._probe = QueueProbe(queue)

    @abstractmethod
    async def _start(self) -> Channel:
        """Start consuming, and return the consumer's channel."""

    @abstractmethod
    async def _finish(self) -> None:
        """Wait until no handler is running."""

    @abstractmethod
    async def _close(self) -> None:
        """Close the channel, even if `_start` has failed."""

    @asynccontextmanager
    async def running(
        self, restore_topology: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Consume until the context ends, then finish the messages in flight.

        Whenever the consumer has ended, `restore_topology` is called, because the queue may be gone. The yielded task
        ends earlier only if there is a bug.
        """
        consuming = asyncio.create_task(self._consume(restore_topology))
        try:
            yield consuming
        finally:
            consuming.cancel()
            await asyncio.wait({consuming})
            with suppress(BrokerUnavailable), broker_errors():
                await self._stop()

    @property
    def alive(self) -> bool:
        """True if the consumer has an open channel, as far as this process knows."""
        return self._channel is not None and not self._channel.is_closed and bool(self._channel.consumers)

    @property
    def connection(self) -> AbstractConnection | None:
        """The consumer's connection, or None if nothing is being consumed."""
        return self._channel.connection if self._channel is not None and self.alive else None

    async def problem(self) -> str | None:
        """Return why nothing is being consumed, or None if there is no problem.

        An open connection is not enough: the channel must have its consumer, and the broker must answer and count it.
        """
        channel = self._channel
        if channel is None or channel.is_closed:
            return f"{self.queue}: not connected to RabbitMQ"
        if not channel.consumers:
            return f"{self.queue}: the consumer was cancelled"
        try:
            [declared] = await self._probe.ask(channel.connection, CHECK_TIMEOUT)
        except BrokerUnavailable as unavailable:
            return f"{self.queue}: RabbitMQ does not answer ({unavailable})"
        return None if declared.consumer_count else f"{self.queue}: RabbitMQ reports no consumers"

    async def _consume(self, restore_topology: Callable[[], Awaitable[None]] | None) -> None:
        outage = Outage(log, f"{self.queue} is not being consumed")
        while True:
            try:
                with broker_errors():
                    self._channel = await self._start()
                    ended = _end_of_consumer(self._channel)
                    outage.ended()
                    await ended.wait()
                wait = outage.failed("the consumer was cancelled or its channel closed")
            except BrokerUnavailable as unavailable:
                wait = outage.failed(unavailable)
            try:
                with broker_errors():
                    # If the broker cancelled the consumer, its channel is still open and handlers are still running.
                    await self._stop()
            except BrokerUnavailable as unavailable:
                log.debug("could not close the old consumer", extra={"queue": self.queue, "reason": str(unavailable)})
            await asyncio.sleep(wait)
            if restore_topology is not None:
                await restore_topology()

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(self._graceful_timeout):
                if self._channel is not None and not self._channel.is_closed:
                    # Messages that are delivered from now on could not be handled in time, so the consumer is cancelled
                    # first. Even if the connection is lost during that, handlers still get their time to finish.
                    with suppress(BrokerUnavailable), broker_errors():
                        for consumer_tag in list(self._channel.consumers):
                            await self._channel.basic_cancel(consumer_tag, nowait=True)
                await self._finish()
        finally:
            # RabbitMQ redelivers every message that has not been acked by now.
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._close()


def _end_of_consumer(channel: Channel) -> asyncio.Event:
    """Return an event that is set when the channel closes or the broker cancels its consumer."""
    ended = asyncio.Event()
    channel.closing.add_done_callback(lambda _: ended.set())
    channel.on_consumer_cancel_callbacks.add(lambda _: ended.set())
    if not channel.consumers:  # it ended before the callbacks were added
        ended.set()
    return ended
