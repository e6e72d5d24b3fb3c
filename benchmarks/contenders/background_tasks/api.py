"""The whole contender; its tasks are not durable. The pages it follows are listed in `__init__.py`."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import BackgroundTasks, Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.contenders.database import engine
from benchmarks.contenders.database import new_async_session as new_session
from benchmarks.contenders.notifications import Notification, NotificationRequest, NotificationView, mark_sent
from benchmarks.contenders.tuning import tuned

LATENCY = float(os.environ["LATENCY"])  # seconds
SENDING = "SENDERS_STOPPED" not in os.environ  # the other contenders' senders are processes that can be stopped

app = FastAPI(lifespan=tuned)


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
    if SENDING:
        tasks.add_task(send, notification.id)
    return notification


async def send(notification_id: UUID) -> None:
    """Send the notification, and store its status."""
    await asyncio.sleep(LATENCY)
    async with engine.begin() as connection:
        await connection.execute(mark_sent(notification_id))
