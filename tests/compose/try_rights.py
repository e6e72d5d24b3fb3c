"""A script that runs in a container, tries operations as its RabbitMQ user, and prints those that RabbitMQ refuses.

Its argument is a JSON list of `[operation, name]` pairs; the operations are read, publish, declare-exchange,
declare-queue, delete and bind.
"""

import asyncio
import json
import sys

import aio_pika
from aiormq.exceptions import ChannelAccessRefused
from notify_common.rabbitmq.connection import RabbitSettings


async def attempt(channel: aio_pika.abc.AbstractChannel, operation: str, name: str) -> None:
    if operation == "read":
        queue = await channel.get_queue(name, ensure=False)
        await queue.get(fail=False)
    elif operation == "publish":
        exchange = await channel.get_exchange(name, ensure=False)
        await exchange.publish(aio_pika.Message(b"not allowed"), "nowhere", mandatory=False)
    elif operation == "declare-exchange":
        await channel.declare_exchange(name, durable=True)
    elif operation == "declare-queue":
        await channel.declare_queue(name, durable=True)
    elif operation == "delete":
        await channel.queue_delete(name)
    elif operation == "bind":
        queue = await channel.get_queue(name, ensure=False)
        await queue.bind("notifications", "email")
    else:
        raise ValueError(operation)


async def main() -> None:
    refused = []
    async with await aio_pika.connect(RabbitSettings().amqp_url()) as connection:
        for operation, name in json.loads(sys.argv[1]):
            try:
                async with connection.channel() as channel:
                    await attempt(channel, operation, name)
            except ChannelAccessRefused:
                refused.append([operation, name])
    print(json.dumps(refused))


asyncio.run(main())
