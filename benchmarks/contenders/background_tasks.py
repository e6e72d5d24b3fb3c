"""FastAPI's BackgroundTasks: the request stores the row; a task sends and updates it after the response.

The code follows https://fastapi.tiangolo.com/tutorial/background-tasks/ and SQLAlchemy's page on asyncio. The tasks are
not durable: they exist in memory only and are lost when the process ends.
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
    """Open a session for one request."""
    async with new_session() as opened:
        yield opened


@app.post("/api/notifications", status_code=201, response_model=NotificationView)
async def create(
    body: NotificationRequest, tasks: BackgroundTasks, session: Annotated[AsyncSession, Depends(session)]
) -> Notification:
    """Store the notification, and send it after the response."""
    notification = Notification(**body.model_dump())
    session.add(notification)
    await session.commit()
    tasks.add_task(send, notification.id)
    return notification


async def send(notification_id: UUID) -> None:
    """Send the notification, and store its status."""
    await asyncio.sleep(LATENCY)
    async with new_session() as session:
        notification = await session.get_one(Notification, notification_id)
        notification.status = "sent"
        await session.commit()
