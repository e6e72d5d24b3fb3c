"""The HTTP side: the request stores the row and its job in one transaction."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
from fastapi import FastAPI, Request
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from benchmarks.contenders.contender import POOL_SIZE
from benchmarks.contenders.notifications import NotificationRequest, NotificationView

INSERT = """
    INSERT INTO notifications (id, user_id, message, type, status, created_at) VALUES ($1, $2, $3, $4, 'pending', $5)
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool while the API runs."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=POOL_SIZE, max_size=POOL_SIZE) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/api/notifications", status_code=201)
async def create(body: NotificationRequest, request: Request) -> NotificationView:
    """Store the notification and its job."""
    view = NotificationView(**body.model_dump(), id=uuid4(), status="pending", created_at=datetime.now(UTC))
    async with request.app.state.pool.acquire() as connection, connection.transaction():
        await connection.execute(INSERT, view.id, view.user_id, view.message, view.type, view.created_at)
        await Queries(AsyncpgDriver(connection)).enqueue("send", str(view.id).encode())
    return view
