"""Calls that wait for their turn when the connection to RabbitMQ is lost: another sender gets their messages."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.errors import PublishFailed
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.sending.provider_limits import ProviderLimits
from support.amqp import Hand, hand_on, prepare_topology
from support.fakes import CuttableNetwork, FakeProvider
from support.services import delivery_requested as request
from support.services import eventually, running_sender
from typing_extensions import override

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
            reported: set[UUID] = set()
            while len(reported) < len(requests):  # the result of the call that was in progress may be reported twice
                reported |= {result.delivery_id for result in await hand.results(1)}
    assert reported == {each.delivery_id for each in requests}
    assert sorted(call.delivery_id for call in provider.calls) == sorted(each.delivery_id for each in requests)


class Unreporting(ConfirmedPublisher):
    """A publisher that publishes no results until `resume` is set."""

    resume: asyncio.Event

    @override
    async def publish(self, messages: Sequence[OutgoingMessage], **options: Any) -> list[PublishFailed | None]:
        if messages[0].exchange == topology.results(Channel.TELEGRAM).exchange:
            await self.resume.wait()
        return await super().publish(messages, **options)


async def test_lost_connections_use_up_no_redeliveries_while_results_cannot_be_reported(
    rabbit: RabbitSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(topology, "REDELIVERY_LIMIT", 2)
    await prepare_topology(
        rabbit, [*topology.dead_letters(), *topology.all_results(), topology.deliveries(Channel.TELEGRAM)]
    )
    resume, provider, requests = asyncio.Event(), FakeProvider(), [request() for _ in range(3)]
    publisher = type("UnreportingOnce", (Unreporting,), {"resume": resume})
    async with (
        hand_on(rabbit) as hand,
        CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network,
    ):
        through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})

        async def calls_are_held() -> bool:
            return "results cannot be reported" in caplog.text

        async def all_received() -> bool:
            return await hand.depth("notifications.telegram") == 0

        async def all_returned() -> bool:
            return await hand.depth("notifications.telegram") == len(requests)

        async def stay_queued() -> None:
            """Fail if the sender gets the messages again, for which it would have time enough."""
            until = time.monotonic() + 2
            while time.monotonic() < until:
                assert not await all_received()
                await asyncio.sleep(0.1)

        async with running_sender(through_network, provider, publisher_class=publisher):
            await hand.request(requests[0])
            await eventually(calls_are_held, "no further calls begin")
            for each in requests[1:]:
                await hand.request(each)
            await eventually(all_received, "the sender has all messages")
            await network.cut()
            await eventually(all_returned, "the messages are back in their queue")
            for _ in range(4):
                await stay_queued()
                await network.cut()
            resume.set()
            results = await hand.results(len(requests))
        assert await hand.depth("notifications.dead") == 0
    assert {result.delivery_id for result in results} == {each.delivery_id for each in requests}
    assert len(provider.calls) == len(requests)
