"""A channel is idle only while RabbitMQ reports that its queues are empty and are being read."""

import asyncio
from collections.abc import AsyncIterator

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_gateway.deliveries.idle_channels import IdleChannels
from support.amqp import Hand
from support.fakes import CuttableNetwork
from support.services import delivery_requested

TELEGRAM = [topology.delivery_queue_name(Channel.TELEGRAM), topology.results(Channel.TELEGRAM).queue.name]


@pytest.fixture
async def network(rabbit: RabbitSettings) -> AsyncIterator[CuttableNetwork]:
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        yield network


@pytest.fixture
async def connection(rabbit: RabbitSettings, network: CuttableNetwork) -> AsyncIterator[AbstractRobustConnection]:
    behind = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    connection = await aio_pika.connect_robust(behind.amqp_url())
    yield connection
    await network.cut()
    await connection.close()


async def consume(hand: Hand, *queues: str) -> None:
    async def keep(_: AbstractIncomingMessage) -> None:
        """Leave the message unacked."""

    for queue in queues:
        await (await hand.channel.get_queue(queue)).consume(keep)


async def test_only_a_channel_whose_empty_queues_are_read_is_idle(
    hand: Hand, connection: AbstractRobustConnection
) -> None:
    idle_channels = IdleChannels(lambda: connection)
    assert await idle_channels() == []
    for queue in TELEGRAM:
        assert await idle_channels() == []
        await consume(hand, queue)
    assert await idle_channels() == [Channel.TELEGRAM]  # the other channels' queues of deliveries do not exist


@pytest.mark.parametrize("waiting", TELEGRAM)
async def test_channel_with_a_waiting_message_is_not_idle(
    hand: Hand, connection: AbstractRobustConnection, waiting: str
) -> None:
    await hand.channel.set_qos(prefetch_count=1)
    await consume(hand, *TELEGRAM)
    for _ in range(2):
        await (hand.request(delivery_requested()) if waiting == TELEGRAM[0] else hand.report())
    assert await IdleChannels(lambda: connection)() == []


async def test_no_channel_is_idle_while_rabbitmq_does_not_answer(
    hand: Hand, connection: AbstractRobustConnection, network: CuttableNetwork
) -> None:
    await consume(hand, *TELEGRAM)
    assert await IdleChannels(lambda: None)() == []
    idle_channels = IdleChannels(lambda: connection)
    assert await idle_channels() == [Channel.TELEGRAM]
    network.freeze()
    assert await idle_channels() == []
    lost = asyncio.Event()
    connection.close_callbacks.add(lambda *_: lost.set())
    await network.close()
    await lost.wait()
    assert await idle_channels() == []
