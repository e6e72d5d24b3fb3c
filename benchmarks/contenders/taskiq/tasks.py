"""The broker and its task. The API and the worker import the same broker."""

import asyncio
import os
from uuid import UUID

from taskiq import TaskiqEvents, TaskiqState
from taskiq_aio_pika import AioPikaBroker

from benchmarks.contenders.contender import CONCURRENCY
from benchmarks.contenders.plain_database import create_pool, mark_sent
from benchmarks.contenders.taskiq import WORKERS
from benchmarks.contenders.tuning import collect_garbage_less_often

LATENCY = float(os.environ["LATENCY"])  # seconds

broker = AioPikaBroker(os.environ["RABBITMQ_URL"], qos=CONCURRENCY // WORKERS)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)  # type: ignore[untyped-decorator]  # it is not installed where types are checked
async def open_pool(state: TaskiqState) -> None:
    """Open the pool when the worker starts."""
    collect_garbage_less_often()
    state.pool = await create_pool()


@broker.task  # type: ignore[untyped-decorator]  # as above
async def send(notification_id: UUID) -> None:
    """Send the notification, and store its status."""
    await asyncio.sleep(LATENCY)
    await mark_sent(broker.state.pool, notification_id)
