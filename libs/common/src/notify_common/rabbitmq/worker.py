"""A service that consumes messages until it is stopped, and then finishes the messages in flight."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from faststream.rabbit import RabbitBroker
from prometheus_client import CollectorRegistry

from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.rabbitmq.subscription import Subscription
from notify_common.runtime.health import health_app
from notify_common.runtime.health_protocol import HealthProtocol
from notify_common.runtime.process import serve

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A service that is wired up but not running yet. RabbitMQ may be unavailable at startup or at any later time."""

    topology: DeclaredTopology
    broker: RabbitBroker
    """The broker that the service uses to publish."""
    consuming: RabbitBroker | None = None
    """The broker whose connection the subscriptions share; None if each has its own."""
    subscriptions: Sequence[Subscription]
    registry: CollectorRegistry
    resources: Sequence[AbstractAsyncContextManager[object]] = ()
    """Contexts that are entered before consuming starts, and exited after everything in flight has finished."""
    background: Sequence[AbstractAsyncContextManager[asyncio.Task[None]]] = ()
    """Contexts like `resources`, each of which yields a task that ends earlier only if there is a bug."""
    stopping: Callable[[], None] = lambda: None
    """Called when the service stops, before handlers are given time to finish."""
    drained: Callable[[], Awaitable[None]] | None = None
    """Waits for work that continues after its handler's connection was lost."""
    before_scrape: Callable[[], Awaitable[None]] | None = None
    graceful_timeout: float

    async def serve(self, host: str, port: int) -> None:
        """Consume until SIGTERM, and serve health checks and metrics in the meantime."""
        app = health_app(self.subscriptions, self.registry, before_scrape=self.before_scrape)
        await serve(app, host=host, port=port, work=self.work, http=HealthProtocol)

    async def work(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, then finish the messages in flight."""
        stopping = asyncio.create_task(stop.wait())
        async with AsyncExitStack() as stack:
            starting = asyncio.create_task(stack.enter_async_context(self.running()))
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
                return
            tasks = starting.result()
            ended, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping: finishing messages in flight")
        for task in ended:
            task.result()  # if a subscription or a background task has failed, its error ends the process

    @asynccontextmanager
    async def running(self) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Consume until the context ends. The yielded tasks end earlier only if there is a bug."""
        async with AsyncExitStack() as resources:
            brokers = [self.broker] if self.consuming is None else [self.broker, self.consuming]
            for broker in brokers:
                resources.push_async_callback(broker.stop)
            for resource in self.resources:
                await resources.enter_async_context(resource)
            background = [await resources.enter_async_context(each) for each in self.background]
            await self.topology.declare()
            self.topology.require_match()
            for broker in brokers:
                await broker.connect()
            subscriptions = [each.running(self.topology.restore) for each in self.subscriptions]
            running = await asyncio.gather(*(each.__aenter__() for each in subscriptions))
            log.info("consuming", extra={"queues": [each.queue for each in self.subscriptions]})
            watching = asyncio.create_task(self.topology.watch())
            try:
                yield [*running, watching, *background]
            finally:
                watching.cancel()
                self.stopping()
                # They stop at the same time, because each may take nearly all the time that the process is given.
                await asyncio.gather(*(each.__aexit__(None, None, None) for each in subscriptions))
            if self.drained is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.graceful_timeout):
                        await self.drained()
