"""The Celery application and its task."""

import os
import time
from uuid import UUID

from celery import Celery
from celery.signals import worker_init
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from benchmarks.contenders.contender import POOL_SIZE
from benchmarks.contenders.notifications import mark_sent
from benchmarks.contenders.tuning import collect_garbage_less_often

LATENCY = float(os.environ["LATENCY"])  # seconds
THREADS = 40  # AnyIO's limit, in which FastAPI runs functions that are not async

app = Celery("celery_tasks", broker=os.environ["RABBITMQ_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    broker_pool_limit=THREADS,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    broker_heartbeat=0,  # with heartbeats, Celery 5.7's gevent workers wait 0.1 s after each message
)
engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"), pool_size=POOL_SIZE, max_overflow=0
)
new_session = sessionmaker(engine, expire_on_commit=False)


@worker_init.connect  # type: ignore[untyped-decorator]  # Celery has no type hints
def prepare(**_: object) -> None:
    """Prepare the worker before it forks."""
    collect_garbage_less_often()


@app.task  # type: ignore[untyped-decorator]  # as above
def send(notification_id: str) -> None:
    """Send the notification, and store its status."""
    time.sleep(LATENCY)
    with engine.begin() as connection:
        connection.execute(mark_sent(UUID(notification_id)))
