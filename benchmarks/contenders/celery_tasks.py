"""The Celery application and its task: late acks, publisher confirms, a session per task.

After https://docs.celeryq.dev/en/stable/getting-started/first-steps-with-celery.html and its page on tasks.
"""

import os
import time
from datetime import UTC, datetime
from uuid import UUID, uuid4

from celery import Celery
from sqlalchemy import BigInteger, DateTime, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

LATENCY = float(os.environ["LATENCY"])  # seconds

app = Celery("celery_tasks", broker=os.environ["RABBITMQ_URL"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
new_session = sessionmaker(engine, expire_on_commit=False)


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


@app.task  # type: ignore[untyped-decorator]  # Celery publishes no types
def send(notification_id: str) -> None:
    """Send, and say so in the database."""
    time.sleep(LATENCY)
    with new_session() as session:
        notification = session.get_one(Notification, UUID(notification_id))
        notification.status = "sent"
        session.commit()
