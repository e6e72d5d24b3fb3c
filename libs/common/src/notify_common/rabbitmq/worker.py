"""The life of a process that consumes: prepare, consume until told to stop, finish what is in flight."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress

from faststream.rabbit import RabbitBroker, RabbitExchange
from prometheus_client import CollectorRegistry

from notify_common.contracts.topology import Binding
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.consumer import Consumer
from notify_common.rabbitmq.declaration import prepare_topology
from notify_common.runtime.health import health_app
from notify_common.runtime.process import GRACEFUL_TIMEOUT, serve

log = logging.getLogger(__name__)


async def consume(
    broker: RabbitBroker,
    consumers: Sequence[Consumer],
    *,
    role: str,
    rabbit: RabbitSettings,
    health_host: str,
    health_port: int,
    registry: CollectorRegistry,
    declares: Sequence[Binding],
    exchanges: Sequence[RabbitExchange] = (),
    prepare: Callable[[], Awaitable[None]] | None = None,
    stopping: Callable[[], None] | None = None,
    drained: Callable[[], Awaitable[None]] | None = None,
    before_scrape: Callable[[], Awaitable[None]] | None = None,
    graceful_timeout: float = GRACEFUL_TIMEOUT,
) -> None:
    """Consume until SIGTERM, serving health and metrics all the while; `prepare` comes first, if given.

    The broker may be away at the start and at any time later. `stopping`, if given, is called when the end begins. What
    runs then has `graceful_timeout` seconds:
    handlers, then what `drained` waits for, if given: what outlives the handlers whose connection was lost.
    """

    async def work(stop: asyncio.Event) -> None:
        async def start() -> None:
            if prepare is not None:
                await prepare()
            await prepare_topology(rabbit, declares, exchanges, role=role)
            await broker.connect()

        starting = asyncio.create_task(start())
        told_to_stop = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, told_to_stop}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            async with AsyncExitStack() as stack:
                tasks = [
                    await stack.enter_async_context(consumer.consuming(graceful_timeout)) for consumer in consumers
                ]
                log.info("consuming", extra={"queues": [consumer.queue for consumer in consumers]})
                ended, _ = await asyncio.wait({told_to_stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                log.info("stopping: finishing what is in flight")
                if stopping is not None:
                    stopping()
            if drained is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(graceful_timeout):
                        await drained()
            for task in ended:
                task.result()  # a consumer that has ended by itself: its error ends the process
        else:
            starting.cancel()
            await asyncio.wait({starting})
        await broker.stop()

    app = health_app(consumers, registry, before_scrape=before_scrape)
    await serve(app, host=health_host, port=health_port, work=work)
