"""The life of a process that consumes: prepare, consume until told to stop, finish what is in flight."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

from notify_common.confirmed_publisher import ConfirmedPublisher
from notify_common.dead_letters import bury
from notify_common.grouped_acks import GroupedAcks
from notify_common.health import health_app
from notify_common.process import serve
from notify_common.rabbitmq import RabbitSettings, prepare_topology, reject
from notify_common.topology import Binding

log = logging.getLogger(__name__)


class Poison(Exception):
    """The message can never be handled: it belongs in the dead letters. The text says why."""


def subscribe(
    broker: RabbitBroker,
    publisher: ConfirmedPublisher,
    queue: RabbitQueue,
    handler: Callable[[RabbitMessage], Awaitable[None]],
    *,
    prefetch: int,
) -> None:
    """Let `handler` have every message of `queue`, `prefetch` at a time.

    A message is acked once its handler returns, and not before all that follows from it is confirmed or committed.
    A handler that raises `Poison`, or fails by a bug, sends its message to the dead letters, with the reason: requeued,
    it would come back at once, for ever. A handler that is cancelled has lost its connection: its message comes again.
    """
    acks = GroupedAcks()

    async def handle(_: bytes) -> None:
        message: RabbitMessage = broker.context.get_local("message")
        try:
            await handler(message)
        except Poison as poison:
            log.error("message is poison queue=%s message_id=%s reason=%s", queue.name, message.message_id, poison)
            await to_dead_letters(message, str(poison))
        except Exception as bug:
            log.exception("handler failed queue=%s message_id=%s", queue.name, message.message_id)
            await to_dead_letters(message, f"bug: {type(bug).__name__}")
        else:
            await acks.ack(message)

    async def to_dead_letters(message: RabbitMessage, reason: str) -> None:
        try:
            await bury(publisher, message.body, queue=queue.name, reason=reason, headers=message.headers)
        except Exception:
            # Such headers, for one, that can be received and not sent. RabbitMQ moves it, without the reason.
            log.exception("reason is not kept queue=%s message_id=%s", queue.name, message.message_id)
            await reject(message)
        else:
            await acks.ack(message)

    # The channel is the subscriber's own: on a shared one, a failed publish would cancel running handlers.
    broker.subscriber(queue, channel=Channel(prefetch_count=prefetch), ack_policy=AckPolicy.MANUAL)(handle)


async def consume(
    broker: RabbitBroker,
    *,
    role: str,
    rabbit: RabbitSettings,
    health_host: str,
    health_port: int,
    reads: Sequence[RabbitQueue],
    declares: Sequence[Binding],
    exchanges: Sequence[RabbitExchange] = (),
    prepare: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Consume the queues in `reads` until SIGTERM, serving health all the while; `prepare` comes first, if given.

    The broker may be away at the start and at any time later.
    """

    async def work(stop: asyncio.Event) -> None:
        async def start() -> None:
            if prepare is not None:
                await prepare()
            await prepare_topology(rabbit, declares, exchanges, role=role)
            await broker.start()

        starting = asyncio.create_task(start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            log.info("consuming queues=%s", ",".join(queue.name for queue in reads))
            await stopping
            log.info("stopping: finishing what is in flight")
        else:
            starting.cancel()
            await asyncio.wait({starting})
        # No new message is taken, and the handlers that run finish. What is not done within the graceful timeout
        # stays unacked and comes again.
        await broker.stop()

    await serve(health_app(broker, reads), host=health_host, port=health_port, work=work)
