"""PostgreSQL without SQLAlchemy, for the contenders whose documentation names no library for databases."""

import os
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg

from benchmarks.contenders.contender import POOL_SIZE
from benchmarks.contenders.notifications import NotificationRequest, NotificationView
from benchmarks.contenders.tuning import PlainConnection

INSERT = """
    INSERT INTO notifications (id, user_id, message, type, status, created_at) VALUES ($1, $2, $3, $4, 'pending', $5)
"""
UPDATE = "UPDATE notifications SET status = 'sent' WHERE id = $1"


def create_pool() -> asyncpg.Pool:
    """Return a pool, which opens its connections when it is entered."""
    return asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=POOL_SIZE, max_size=POOL_SIZE, connection_class=PlainConnection
    )


def new_notification(body: NotificationRequest) -> NotificationView:
    """Return a notification that is not stored yet."""
    return NotificationView(**body.model_dump(), id=uuid4(), status="pending", created_at=datetime.now(UTC))


async def insert(executor: asyncpg.Pool | asyncpg.Connection, new: NotificationView) -> None:
    """Store a notification."""
    await executor.execute(INSERT, new.id, new.user_id, new.message, new.type, new.created_at)


async def mark_sent(executor: asyncpg.Pool, notification_id: UUID) -> None:
    """Store the final status."""
    await executor.execute(UPDATE, notification_id)
