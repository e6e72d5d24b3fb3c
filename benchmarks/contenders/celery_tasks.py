"""The Celery application and its task, with late acks, publisher confirms and a session per task.

The code follows https://docs.celeryq.dev/en/stable/getting-started/first-steps-with-celery.html and the page on tasks.
"""

import os
import time
from uuid import UUID

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from benchmarks.contenders.notifications import Notification

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


@app.task  # type: ignore[untyped-decorator]  # Celery has no type hints
def send(notification_id: str) -> None:
    """Send the notification, and store its status."""
    time.sleep(LATENCY)
    with new_session() as session:
        notification = session.get_one(Notification, UUID(notification_id))
        notification.status = "sent"
        session.commit()
