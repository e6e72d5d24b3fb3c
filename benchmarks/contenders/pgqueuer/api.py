"""The HTTP side: the request stores the row and its job in one transaction."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from benchmarks.contenders.notifications import NotificationRequest, NotificationView
from benchmarks.contenders.plain_database import create_pool, insert, new_notification
from benchmarks.contenders.tuning import collect_garbage_less_often


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool while the API runs."""
    collect_garbage_less_often()
    async with create_pool() as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/api/notifications", status_code=201)
async def create(body: NotificationRequest, request: Request) -> NotificationView:
    """Store the notification and its job."""
    new = new_notification(body)
    async with request.app.state.pool.acquire() as connection, connection.transaction():
        await insert(connection, new)
        await Queries(AsyncpgDriver(connection)).enqueue("send", str(new.id).encode())
    return new
