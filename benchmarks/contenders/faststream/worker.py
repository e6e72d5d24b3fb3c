"""The FastStream application: a subscriber sends each delivery and stores its status."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy, ContextRepo, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from benchmarks.contenders.contender import CONCURRENCY
from benchmarks.contenders.faststream.messages import QUEUE, Delivery
from benchmarks.contenders.plain_database import create_pool, mark_sent
from benchmarks.contenders.tuning import collect_garbage_less_often

LATENCY = float(os.environ["LATENCY"])  # seconds


@asynccontextmanager
async def lifespan(context: ContextRepo) -> AsyncIterator[None]:
    """Open the pool while the worker runs."""
    collect_garbage_less_often()
    async with create_pool() as pool:
        context.set_global("pool", pool)
        yield


broker = RabbitBroker(os.environ["RABBITMQ_URL"], logger=None)
app = FastStream(broker, logger=None, lifespan=lifespan)


@broker.subscriber(RabbitQueue(QUEUE), channel=Channel(prefetch_count=CONCURRENCY), ack_policy=AckPolicy.NACK_ON_ERROR)
async def send(delivery: Delivery) -> None:
    """Send the notification, and store its status."""
    await asyncio.sleep(LATENCY)
    await mark_sent(app.context.get("pool"), delivery.id)
