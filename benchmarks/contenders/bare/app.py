"""aio-pika and asyncpg without batching: three processes with one publish, one statement and one ack per message.

The gateway is the ASGI application `app`; `python -m benchmarks.contenders.bare.app sender|writer` runs the others.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import aio_pika
import asyncpg
import uvloop
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage
from fastapi import FastAPI, Request
from pydantic import BaseModel

from benchmarks.contenders.contender import CONCURRENCY
from benchmarks.contenders.notifications import NotificationRequest, NotificationView
from benchmarks.contenders.plain_database import insert, mark_sent, new_notification

LATENCY = float(os.environ["LATENCY"])  # seconds
DELIVERIES, RESULTS = "bare.deliveries", "bare.results"
QUORUM = {"x-queue-type": "quorum"}


class Delivery(BaseModel):
    """A message to the sender."""

    id: UUID
    user_id: int
    message: str


class Result(BaseModel):
    """A message to the writer, which reports that the delivery was sent."""

    id: UUID


async def open_channel() -> AbstractChannel:
    """Open a channel with confirms, and declare both queues."""
    connection = await aio_pika.connect_robust(os.environ["RABBITMQ_URL"])
    channel = await connection.channel()
    await channel.set_qos(CONCURRENCY)
    for queue in (DELIVERIES, RESULTS):
        await channel.declare_queue(queue, durable=True, arguments=QUORUM)
    return channel


async def publish(exchange: AbstractExchange, body: BaseModel, queue: str) -> None:
    """Publish a message, and return when the broker has confirmed it."""
    message = aio_pika.Message(
        body.model_dump_json().encode(),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await exchange.publish(message, queue)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool and the channel while the gateway runs."""
    app.state.exchange = (await open_channel()).default_exchange
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/api/notifications", status_code=201)
async def create(body: NotificationRequest, request: Request) -> NotificationView:
    """Store the notification and publish its delivery."""
    new = new_notification(body)
    await insert(request.app.state.pool, new)
    await publish(request.app.state.exchange, Delivery(id=new.id, user_id=new.user_id, message=new.message), DELIVERIES)
    return new


async def sender() -> None:
    """Send each delivery, and publish its result."""
    channel = await open_channel()
    exchange = channel.default_exchange

    async def handle(message: AbstractIncomingMessage) -> None:
        delivery = Delivery.model_validate_json(message.body)
        await asyncio.sleep(LATENCY)
        await publish(exchange, Result(id=delivery.id), RESULTS)
        await message.ack()

    await (await channel.get_queue(DELIVERIES)).consume(handle)
    await asyncio.Event().wait()


async def writer() -> None:
    """Store each result."""
    channel = await open_channel()
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:

        async def handle(message: AbstractIncomingMessage) -> None:
            await mark_sent(pool, Result.model_validate_json(message.body).id)
            await message.ack()

        await (await channel.get_queue(RESULTS)).consume(handle)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run({"sender": sender, "writer": writer}[sys.argv[1]]())
