"""aio-pika and asyncpg with batching, in three processes.

The gateway is the ASGI application `app`; `python -m benchmarks.contenders.bare_strong.app sender|writer` runs the
others. The sender has nothing to batch: it is the one of `bare`.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from fastapi import FastAPI, Request

from benchmarks.contenders.bare.app import DELIVERIES, RESULTS, Delivery, Result, open_channel, publish, sender
from benchmarks.contenders.bare_strong.batches import Batches
from benchmarks.contenders.notifications import NotificationRequest, NotificationView
from benchmarks.contenders.plain_database import new_notification
from benchmarks.contenders.tuning import PlainConnection, collect_garbage_less_often

INSERT = """
    INSERT INTO notifications (id, user_id, message, type, status, created_at)
    SELECT id, user_id, message, type, 'pending', created_at
    FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[])
        AS new (id, user_id, message, type, created_at)
"""
UPDATE = "UPDATE notifications SET status = 'sent' WHERE id = ANY($1)"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool and the channel while the gateway runs."""
    collect_garbage_less_often()
    exchange = (await open_channel()).default_exchange
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], connection_class=PlainConnection) as pool:

        async def insert(views: Sequence[NotificationView]) -> None:
            rows = [(view.id, view.user_id, view.message, view.type, view.created_at) for view in views]
            await pool.execute(INSERT, *map(list, zip(*rows, strict=True)))

        app.state.exchange, app.state.inserts = exchange, Batches(insert)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/api/notifications", status_code=201)
async def create(body: NotificationRequest, request: Request) -> NotificationView:
    """Store the notification together with others, and publish its delivery."""
    new, state = new_notification(body), request.app.state
    await state.inserts.add(new)
    await publish(state.exchange, Delivery(id=new.id, user_id=new.user_id, message=new.message), DELIVERIES)
    return new


async def writer() -> None:
    """Store results in batches, and acknowledge each batch at once."""
    channel = await open_channel()
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], connection_class=PlainConnection) as pool:

        async def update(messages: Sequence[AbstractIncomingMessage]) -> None:
            # Batches follow each other in the order of arrival, so `multiple` covers exactly this batch.
            try:
                await pool.execute(UPDATE, [Result.model_validate_json(message.body).id for message in messages])
            except (asyncpg.PostgresError, OSError):
                await messages[-1].nack(multiple=True)
                raise
            await messages[-1].ack(multiple=True)

        batches = Batches(update)
        await (await channel.get_queue(RESULTS)).consume(batches.add)
        await asyncio.Event().wait()


if __name__ == "__main__":
    collect_garbage_less_often()
    uvloop.run({"sender": sender, "writer": writer}[sys.argv[1]]())
