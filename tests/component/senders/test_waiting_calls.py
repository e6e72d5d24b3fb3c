"""Calls that wait for their turn when the connection to RabbitMQ is lost: another sender gets their messages."""

import asyncio

from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.provider_limits import ProviderLimits
from support.amqp import Hand
from support.fakes import CuttableNetwork, FakeProvider
from support.services import delivery_requested as request
from support.services import eventually, running_sender

ONE_CALL = ProviderLimits(concurrency=1)


async def test_waiting_calls_are_left_to_another_sender(rabbit: RabbitSettings, hand: Hand) -> None:
    go, requests = asyncio.Event(), [request(recipient="42") for _ in range(5)]

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent"

    async def all_received() -> bool:
        return await hand.depth("notifications.telegram") == 0

    first, second = FakeProvider(wait), FakeProvider()
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        async with running_sender(through_network, first, limits=ONE_CALL):
            for each in requests:
                await hand.request(each)
            await first.called.wait()
            await eventually(all_received, "the first sender has all messages")
            await network.close()
            async with running_sender(rabbit, second):
                await hand.results(len(requests))
            await network.open()
            go.set()
            await hand.results(1)
    # Only the call that had begun is made twice.
    assert len(first.calls) == 1
    assert {call.delivery_id for call in second.calls} == {each.delivery_id for each in requests}


async def test_waiting_calls_are_made_once_after_the_same_sender_reconnects(rabbit: RabbitSettings, hand: Hand) -> None:
    go, requests = asyncio.Event(), [request(recipient="42") for _ in range(5)]

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent"

    provider = FakeProvider(wait)
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        async with running_sender(through_network, provider, limits=ONE_CALL):
            for each in requests:
                await hand.request(each)
            await provider.called.wait()
            await network.cut()
            go.set()
            results = await hand.results(len(requests))
    assert {result.delivery_id for result in results} == {each.delivery_id for each in requests}
    assert sorted(call.delivery_id for call in provider.calls) == sorted(each.delivery_id for each in requests)
