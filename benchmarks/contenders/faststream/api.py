"""The HTTP side: the request stores the row and publishes its delivery."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from faststream.rabbit import RabbitBroker, RabbitQueue

from benchmarks.contenders.faststream.messages import QUEUE, Delivery
from benchmarks.contenders.notifications import NotificationRequest, NotificationView
from benchmarks.contenders.plain_database import create_pool, insert, new_notification
from benchmarks.contenders.tuning import collect_garbage_less_often

broker = RabbitBroker(os.environ["RABBITMQ_URL"], logger=None)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool and connect the broker while the API runs."""
    collect_garbage_less_often()
    async with create_pool() as app.state.pool, broker:
        await broker.start()
        # A request that came before the worker's start would otherwise be unroutable.
        await broker.declare_queue(RabbitQueue(QUEUE))
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/api/notifications", status_code=201)
async def create(body: NotificationRequest, request: Request) -> NotificationView:
    """Store the notification and publish its delivery."""
    new = new_notification(body)
    await insert(request.app.state.pool, new)
    await broker.publish(Delivery(id=new.id, user_id=new.user_id, message=new.message), QUEUE, persist=True)
    return new
