"""FastAPI's BackgroundTasks: the request stores the row, a task after the response sends and updates it.

After https://fastapi.tiangolo.com/tutorial/background-tasks/ and SQLAlchemy's page on asyncio. Nothing is durable: what
waits in memory is gone with the process.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import BackgroundTasks, Depends, FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import BigInteger, DateTime
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

LATENCY = float(os.environ["LATENCY"])  # seconds

engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"))
new_session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Base(DeclarativeBase):
    """All tables."""


class Notification(Base):
    """What a client asked for, and what became of it."""

    __tablename__ = "notifications"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[int] = mapped_column(BigInteger)
    message: Mapped[str]
    type: Mapped[str]
    status: Mapped[str] = mapped_column(default="pending")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC))


class NotificationRequest(BaseModel):
    """A notification to send."""

    user_id: int
    message: str
    type: str


class NotificationView(NotificationRequest):
    """A notification as it is told."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    status: str
    created_at: datetime


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
