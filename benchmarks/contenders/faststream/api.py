"""The HTTP side: the request stores the row and publishes its delivery."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from faststream.rabbit import RabbitBroker, RabbitQueue
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.contenders.database import new_async_session
from benchmarks.contenders.faststream.messages import QUEUE, Delivery
from benchmarks.contenders.notifications import Notification, NotificationRequest, NotificationView

broker = RabbitBroker(os.environ["RABBITMQ_URL"], logger=None)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect the broker while the API runs."""
    async with broker:
        await broker.start()
        # A request that came before the worker's start would otherwise be unroutable.
        await broker.declare_queue(RabbitQueue(QUEUE))
        yield


app = FastAPI(lifespan=lifespan)


async def session() -> AsyncIterator[AsyncSession]:
    """Open a session for one request."""
    async with new_async_session() as opened:
        yield opened


@app.post("/api/notifications", status_code=201, response_model=NotificationView)
async def create(body: NotificationRequest, session: Annotated[AsyncSession, Depends(session)]) -> Notification:
    """Store the notification and publish its delivery."""
    notification = Notification(**body.model_dump())
    session.add(notification)
    await session.commit()
    delivery = Delivery(id=notification.id, user_id=notification.user_id, message=notification.message)
    await broker.publish(delivery, QUEUE, persist=True)
    return notification
