"""The HTTP side: the request stores the row and hands the task to RabbitMQ."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from benchmarks.contenders.notifications import NotificationRequest, NotificationView
from benchmarks.contenders.plain_database import create_pool, insert, new_notification
from benchmarks.contenders.taskiq.tasks import broker, send
from benchmarks.contenders.tuning import collect_garbage_less_often


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool and connect the broker while the API runs."""
    collect_garbage_less_often()
    async with create_pool() as app.state.pool:
        await broker.startup()
        yield
        await broker.shutdown()


app = FastAPI(lifespan=lifespan)


@app.post("/api/notifications", status_code=201)
async def create(body: NotificationRequest, request: Request) -> NotificationView:
    """Store the notification, and let a worker send it."""
    new = new_notification(body)
    await insert(request.app.state.pool, new)
    await send.kiq(new.id)
    return new
