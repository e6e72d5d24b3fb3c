"""The HTTP side: the request stores the row and hands the task to RabbitMQ."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.contenders.database import new_async_session
from benchmarks.contenders.notifications import Notification, NotificationRequest, NotificationView
from benchmarks.contenders.taskiq.tasks import broker, send


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect the broker while the API runs."""
    await broker.startup()
    yield
    await broker.shutdown()


app = FastAPI(lifespan=lifespan)


async def session() -> AsyncIterator[AsyncSession]:
    """Open a session for one request."""
    async with new_async_session() as opened:
        yield opened


@app.post("/api/notifications", status_code=201, response_model=NotificationView)
async def create(body: NotificationRequest, session: Annotated[AsyncSession, Depends(session)]) -> Notification:
    """Store the notification, and let a worker send it."""
    notification = Notification(**body.model_dump())
    session.add(notification)
    await session.commit()
    await send.kiq(notification.id)
    return notification
