"""Direct access to RabbitMQ for tests: publish anything, read any queue."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from faststream.rabbit import RabbitExchange
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, DeliveryResult, DeliveryResults
from notify_common.contracts.topology import Binding
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.declaration import DeclaredTopology

TIMEOUT = 20.0  # seconds; reached only if the test fails


class Hand:
    """A channel with publisher confirms, on which tests publish and read messages directly."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        headers: Mapping[str, Any] | None = None,
        message_id: str | None = None,
    ) -> None:
        encoded = body if isinstance(body, bytes) else body.encode()
        message = aio_pika.Message(encoded, headers=dict(headers or {}), message_id=message_id)
        await (await self.channel.get_exchange(exchange)).publish(message, routing_key)

    async def request(self, request: DeliveryRequested) -> None:
        await self.publish("notifications", request.channel.value, request.body(), request.headers())

    async def report(self, *results: DeliveryResult, channel: Channel | None = Channel.TELEGRAM) -> None:
        """Report as a channel's sender does or, without a channel, as older senders do."""
        body = DeliveryResults(results=results).model_dump_json()
        to = topology.results(channel)
        await self.publish(to.exchange.name, to.routing_key, body)

    async def next_message(self, queue: str) -> AbstractIncomingMessage:
        """Wait for the next message in the queue, ack it and return it."""
        source = await self.channel.get_queue(queue)
        async with asyncio.timeout(TIMEOUT):
            # Poll, because a consumer could receive a second message before it is cancelled.
            while (message := await source.get(fail=False)) is None:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)
        await message.ack()
        return message

    async def results(self, count: int) -> list[DeliveryResult]:
        """Wait for at least `count` results from senders of any channel, and return them."""
        queues = [await self.channel.get_queue(topology.results(channel).queue.name) for channel in Channel]
        found: list[DeliveryResult] = []
        while len(found) < count:
            async with asyncio.timeout(TIMEOUT):
                while not (messages := [each for queue in queues if (each := await queue.get(fail=False))]):  # noqa: ASYNC110 - see `next_message`
                    await asyncio.sleep(0.01)
            for message in messages:
                await message.ack()
                found += DeliveryResults.model_validate_json(message.body).results
        return found

    async def depth(self, queue: str) -> int:
        """Return the number of ready messages in the queue; unacked ones are not counted."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def listen(self, exchange: str, routing_key: str) -> asyncio.Queue[AbstractIncomingMessage]:
        """Return a queue that receives every message published to the exchange from now on."""
        inbox: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(exchange, routing_key)
        await queue.consume(inbox.put, no_ack=True)
        return inbox


@asynccontextmanager
async def hand_on(settings: RabbitSettings) -> AsyncIterator[Hand]:
    connection = await aio_pika.connect(settings.amqp_url())
    async with connection:
        yield Hand(await connection.channel(on_return_raises=True))


async def prepare_topology(
    settings: RabbitSettings, bindings: Sequence[Binding], exchanges: Sequence[RabbitExchange] = ()
) -> None:
    """Declare what the services of a test would declare."""
    await DeclaredTopology(settings, bindings, exchanges, role="test").declare()
