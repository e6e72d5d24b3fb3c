"""The FastStream application: a subscriber sends each delivery and stores its status."""

import asyncio
import os

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from benchmarks.contenders.contender import CONCURRENCY
from benchmarks.contenders.database import new_async_session
from benchmarks.contenders.faststream.messages import QUEUE, Delivery
from benchmarks.contenders.notifications import mark_sent

LATENCY = float(os.environ["LATENCY"])  # seconds

broker = RabbitBroker(os.environ["RABBITMQ_URL"], logger=None)
app = FastStream(broker, logger=None)


@broker.subscriber(RabbitQueue(QUEUE), channel=Channel(prefetch_count=CONCURRENCY), ack_policy=AckPolicy.NACK_ON_ERROR)
async def send(delivery: Delivery) -> None:
    """Send the notification, and store its status."""
    await asyncio.sleep(LATENCY)
    async with new_async_session() as session:
        await session.execute(mark_sent(delivery.id))
        await session.commit()
