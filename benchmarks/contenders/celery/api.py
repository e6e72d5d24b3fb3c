"""The HTTP side of the Celery contender: the request stores the row and hands the task to RabbitMQ."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy.orm import Session

from benchmarks.contenders.celery.tasks import new_session, send
from benchmarks.contenders.notifications import Notification, NotificationRequest, NotificationView
from benchmarks.contenders.tuning import tuned

app = FastAPI(lifespan=tuned)


def session() -> Iterator[Session]:
    """Open a session for one request."""
    with new_session() as opened:
        yield opened


# This function is not async because both the session and `delay` block.
@app.post("/api/notifications", status_code=201, response_model=NotificationView)
def create(body: NotificationRequest, session: Annotated[Session, Depends(session)]) -> Notification:
    """Store the notification, and let a worker send it."""
    notification = Notification(**body.model_dump())
    session.add(notification)
    session.commit()
    send.delay(str(notification.id))
    return notification
