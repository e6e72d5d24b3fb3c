"""The broker and its task. The API and the worker import the same broker."""

import asyncio
import os
from uuid import UUID

from taskiq_aio_pika import AioPikaBroker

from benchmarks.contenders.contender import CONCURRENCY
from benchmarks.contenders.database import new_async_session
from benchmarks.contenders.notifications import mark_sent
from benchmarks.contenders.taskiq import WORKERS

LATENCY = float(os.environ["LATENCY"])  # seconds

broker = AioPikaBroker(os.environ["RABBITMQ_URL"], qos=CONCURRENCY // WORKERS)


@broker.task  # type: ignore[untyped-decorator]  # it is not installed where types are checked
async def send(notification_id: UUID) -> None:
    """Send the notification, and store its status."""
    await asyncio.sleep(LATENCY)
    async with new_async_session() as session:
        await session.execute(mark_sent(notification_id))
        await session.commit()
