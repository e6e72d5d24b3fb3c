"""The request, table and response that the alternatives to this service share."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict
from sqlalchemy import BigInteger, DateTime, Update, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base class of all tables."""


class Notification(Base):
    """A notification and its status."""

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
    """A notification in a response."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    status: str
    created_at: datetime


def mark_sent(notification_id: UUID) -> Update:
    """Return the statement that stores the final status: one UPDATE, without reading the row first.

    It needs no session, which would look for the row among its objects.
    """
    return update(Notification).where(Notification.id == notification_id).values(status="sent")
