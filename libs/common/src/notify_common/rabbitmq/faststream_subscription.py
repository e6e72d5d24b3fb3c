"""FastStream subscribers that survive the loss of their connection, channel, consumer or queue.

Each subscriber has its own `RabbitBroker` and connection, because `broker.start()` restarts all of a broker's
subscribers, and one missing queue would keep the others from starting. `DeclaredTopology` declares the queue on another
connection, because FastStream ignores a subscriber's channel if its broker has already declared the queue.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from aio_pika import RobustConnection
from aiormq.channel import Channel as AmqpChannel
from faststream import AckPolicy, BaseMiddleware, ContextRepo
from faststream.exceptions import RejectMessage
from faststream.rabbit import Channel, RabbitMessage, RabbitQueue
from faststream.rabbit.subscriber import RabbitSubscriber
from typing_extensions import override

from notify_common.rabbitmq.connection import FailoverBroker, RabbitSettings
from notify_common.rabbitmq.dead_letters import dead_letter_failed
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.subscription import CLOSE_TIMEOUT, Subscription

CONNECT_TIMEOUT = 0.8 * CLOSE_TIMEOUT  # seconds; shorter, because `_close` first waits for a connection attempt to end

Decoded = TypeVar("Decoded")


class FastStreamSubscription(Subscription):
    """A FastStream subscriber with its own `RabbitBroker`.

    `decode` converts the message to the argument of `handle`. Both must be coroutine functions, because FastStream runs
    other functions in threads.
    """

    def __init__(
        self,
        settings: RabbitSettings,
        role: str,
        queue: str,
        *,
        decode: Callable[[RabbitMessage], Awaitable[Decoded]],
        handle: Callable[[Decoded], Awaitable[None]],
        prefetch: int,
        publisher: ConfirmedPublisher,
        graceful_timeout: float,
    ) -> None:
        super().__init__(queue, publisher, graceful_timeout=graceful_timeout)
        self._settings = settings
        self._role = role
        # `Subscription` restarts the consumer after a loss. If aio-pika restored it as well, there would be two.
        self._queue = RabbitQueue(queue, declare=False, robust=False)
        self._decode = decode
        self._handle = handle
        self._prefetch = prefetch
        self._subscriber: RabbitSubscriber | None = None
        self._connecting: asyncio.Task[RobustConnection] | None = None

    @override
    async def _start(self) -> AmqpChannel:
        # Each start uses a new broker, because one that did not stop in time cannot be started again.
        broker = FailoverBroker(
            self._settings,
            self._role,
            timeout=min(self._settings.rabbitmq_connect_timeout, CONNECT_TIMEOUT),
            graceful_timeout=self._graceful_timeout,
            middlewares=[partial(DeadLetterOnError, queue=self.queue, publisher=self._publisher)],
        )
        self._subscriber = broker.subscriber(
            self._queue,
            # Without this, the subscriber would share the broker's channel, which has no prefetch limit.
            channel=Channel(prefetch_count=self._prefetch),
            decoder=self._decode,
            ack_policy=AckPolicy.REJECT_ON_ERROR,
            no_reply=True,
        )
        self._subscriber(self._handle)
        # Connecting is a separate task, because aio-pika never stops trying if it is cancelled while connecting.
        self._connecting = asyncio.create_task(broker.connect())
        await asyncio.wait({self._connecting})
        self._connecting.result()
        await broker.start()
        # This returns the queue object that the subscriber has already looked up, which has the subscriber's channel.
        queue = await broker.declare_queue(self._queue)
        channel = await queue.channel.get_underlay_channel()
        assert isinstance(channel, AmqpChannel)  # noqa: S101 - aiormq's only channel class
        return channel

    @override
    async def _finish(self) -> None:
        if self._subscriber is not None:
            await self._subscriber.stop()

    @override
    async def _close(self) -> None:
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
            if self._connecting.exception() is None:
                await self._connecting.result().close()


class DeadLetterOnError(BaseMiddleware[Any, Any]):
    """A middleware that dead-letters messages that cannot be handled, before they are acked."""

    def __init__(self, message: Any, /, *, context: ContextRepo, queue: str, publisher: ConfirmedPublisher) -> None:  # noqa: ANN401
        super().__init__(message, context=context)
        self._message = message  # the raw message, because FastStream generates an id if there is none
        self._queue = queue
        self._publisher = publisher

    @override
    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: Any) -> Any:
        try:
            return await call_next(msg)
        except Exception as error:
            if not await dead_letter_failed(self._publisher, self._message, error, queue=self._queue):
                raise RejectMessage from error
