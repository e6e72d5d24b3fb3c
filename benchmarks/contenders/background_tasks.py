"""FastAPI's BackgroundTasks: the request stores the row, a task after the response sends and updates it.

After https://fastapi.tiangolo.com/tutorial/background-tasks/ and SQLAlchemy's page on asyncio. Nothing is durable: what
waits in memory is gone with the process.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import BackgroundTasks, Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.contenders.notifications import Notification, NotificationRequest, NotificationView

LATENCY = float(os.environ["LATENCY"])  # seconds

engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"))
new_session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


async def session() -> AsyncIterator[AsyncSession]:
    """The session of a request."""
    async with new_session() as opened:
        yield opened


@app.post("/api/notifications", status_code=201, response_model=NotificationView)
async def create(
    body: NotificationRequest, tasks: BackgroundTasks, session: Annotated[AsyncSession, Depends(session)]
) -> Notification:
    """Store it, and send it after the response."""
    notification = Notification(**body.model_dump())
    session.add(notification)
    await session.commit()
    tasks.add_task(send, notification.id)
    return notification


async def send(notification_id: UUID) -> None:
    """Send, and say so in the database."""
    await asyncio.sleep(LATENCY)
    async with new_session() as own:
        notification = await own.get_one(Notification, notification_id)
        notification.status = "sent"
        await own.commit()
