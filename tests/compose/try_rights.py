"""Runs inside a container, with its RabbitMQ user: tries what its argument lists, prints what was refused.

Each thing is `[what, name]`; what is read, publish, declare-exchange, declare-queue, delete or bind.
"""

import asyncio
import json
import sys

import aio_pika
from aiormq.exceptions import ChannelAccessRefused
from notify_common.rabbitmq.connection import RabbitSettings


async def attempt(channel: aio_pika.abc.AbstractChannel, what: str, name: str) -> None:
    if what == "read":
        queue = await channel.get_queue(name, ensure=False)
        await queue.get(fail=False)
    elif what == "publish":
        exchange = await channel.get_exchange(name, ensure=False)
        await exchange.publish(aio_pika.Message(b"not allowed"), "nowhere", mandatory=False)
    elif what == "declare-exchange":
        await channel.declare_exchange(name, durable=True)
    elif what == "declare-queue":
        await channel.declare_queue(name, durable=True)
    elif what == "delete":
        await channel.queue_delete(name)
    elif what == "bind":
        queue = await channel.get_queue(name, ensure=False)
        await queue.bind("notifications", "email")
    else:
        raise ValueError(what)


async def main() -> None:
    refused = []
    async with await aio_pika.connect(RabbitSettings().amqp_url()) as connection:
        for what, name in json.loads(sys.argv[1]):
            try:
                async with connection.channel() as channel:
                    await attempt(channel, what, name)
            except ChannelAccessRefused:
                refused.append([what, name])
    print(json.dumps(refused))


asyncio.run(main())
