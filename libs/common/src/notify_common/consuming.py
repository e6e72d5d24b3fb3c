"""The life of a process that consumes: prepare, consume until told to stop, finish what is in flight."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue

from notify_common.health import health_app
from notify_common.process import serve
from notify_common.rabbitmq import RabbitSettings, prepare_topology
from notify_common.topology import Binding

log = logging.getLogger(__name__)


def subscribe(
    broker: RabbitBroker, queue: RabbitQueue, handler: Callable[[bytes], Awaitable[None]], *, prefetch: int
) -> None:
    """Let `handler` have every message of `queue`, `prefetch` at a time, and settle each itself.

    The channel is the subscriber's own: on a shared one, a failed publish would cancel running handlers.
    """
    broker.subscriber(queue, channel=Channel(prefetch_count=prefetch), ack_policy=AckPolicy.MANUAL)(handler)


async def consume(
    broker: RabbitBroker,
    *,
    rabbit: RabbitSettings,
    health_host: str,
    health_port: int,
    reads: Sequence[RabbitQueue],
    declares: Sequence[Binding],
    exchanges: Sequence[RabbitExchange] = (),
    drained: Callable[[], Awaitable[None]],
) -> None:
    """Consume the queues in `reads` until SIGTERM, serving health all the while.

    The broker may be away at the start and at any time later.
    """

    async def work(stop: asyncio.Event) -> None:
        starting = asyncio.create_task(_start(broker, rabbit, declares, exchanges))
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
        # No new message is taken; the handlers that run may finish within the graceful timeout.
        await broker.stop()
        await drained()

    await serve(health_app(broker, reads), host=health_host, port=health_port, work=work)


async def _start(
    broker: RabbitBroker,
    rabbit: RabbitSettings,
    bindings: Sequence[Binding],
    exchanges: Sequence[RabbitExchange],
) -> None:
    await prepare_topology(rabbit, bindings, exchanges)
    await broker.start()
