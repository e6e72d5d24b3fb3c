"""A sender republishes messages that the broker has not accepted, and does not dead-letter them."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from notify_common.contracts.messages import DeliveryRequested, Outcome
from notify_common.contracts.topology import NOTIFICATIONS
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.sending.errors import TemporaryFailure
from support.alarms import listening_process, suspended_queue
from support.amqp import Hand
from support.fakes import FakeProvider
from support.servers import Servers, in_containers
from support.services import delivery_requested, running_sender
from support.unconfirmed import unconfirmed

RETRY_EXCHANGE, RETRY_QUEUE, DELAY = "notifications.telegram.retry", "notifications.telegram.retry.50", "50"


async def test_retry_is_published_again_until_the_broker_accepts_it(rabbit: RabbitSettings, hand: Hand) -> None:
    calls = 0

    async def fail_once(_: DeliveryRequested) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise TemporaryFailure("busy")
        return "sent"

    async with running_sender(rabbit, FakeProvider(fail_once)):
        queue = await hand.channel.get_queue(RETRY_QUEUE)
        await queue.unbind(RETRY_EXCHANGE, DELAY)
        await hand.request(delivery_requested())
        [first] = await hand.results(1)  # the result is published first; the retry is returned as unroutable
        await queue.bind(RETRY_EXCHANGE, DELAY)
        [second] = await hand.results(1)
    assert (first.outcome, second.outcome) == (Outcome.RETRYING, Outcome.SENT)
    assert await hand.depth("notifications.dead.telegram") == 0


async def test_early_message_is_published_again_until_the_broker_accepts_it(rabbit: RabbitSettings, hand: Hand) -> None:
    async with running_sender(rabbit, FakeProvider()):
        queue = await hand.channel.get_queue(RETRY_QUEUE)
        await queue.unbind(RETRY_EXCHANGE, DELAY)
        await hand.request(delivery_requested(not_before=datetime.now(UTC) + timedelta(milliseconds=60)))
        await hand.request(delivery_requested())
        # By the time the second request has a result, the first has been returned as unroutable at least once.
        await hand.results(1)
        await queue.bind(RETRY_EXCHANGE, DELAY)
        [result] = await hand.results(1)
    assert result.outcome is Outcome.SENT
    assert await hand.depth("notifications.dead.telegram") == 0


async def test_retry_queue_that_never_confirms_delays_no_other_retry(rabbit: RabbitSettings, hand: Hand) -> None:
    publisher = unconfirmed(DELAY)

    async def fail_first_and_second(request: DeliveryRequested) -> str:
        if request.attempt <= 2:
            raise TemporaryFailure("busy")
        return "sent"

    async with running_sender(rabbit, FakeProvider(fail_first_and_second), publisher_class=publisher):
        await hand.request(delivery_requested())
        await publisher.began.wait()
        # This is the second failure, so its retry has the next longer delay.
        await hand.request(other := delivery_requested(attempt=2, failures=1))
        results = await hand.results(3)
        publisher.ended.set()
    assert [result.outcome for result in results] == [Outcome.RETRYING, Outcome.RETRYING, Outcome.SENT]
    assert results[-1].delivery_id == other.delivery_id


@pytest.mark.skipif(in_containers(), reason="requires a private server")
@pytest.mark.parametrize("used_before", [False, True], ids=["first retry", "later retry"])
async def test_retry_queue_that_commits_nothing_delays_no_result(
    rabbit: RabbitSettings, hand: Hand, servers: Servers, tmp_path: Path, used_before: bool
) -> None:
    together, go = 60, asyncio.Event()
    waiting: list[DeliveryRequested] = []

    async def send(request: DeliveryRequested) -> str:
        if request.attempt == 1 and request.content.message == "fails":
            waiting.append(request)
            if len(waiting) == together:
                go.set()
            await go.wait()
            raise TemporaryFailure("busy")
        if request.attempt == 1 and request.content.message == "fails at once":
            raise TemporaryFailure("busy")
        return "sent"

    async with running_sender(rabbit, FakeProvider(send), provider_timeout=60):
        if used_before:
            await hand.request(delivery_requested(content={"message": "fails at once"}))
            await hand.results(2)
        pid = listening_process(servers.rabbit.rabbitmq_port)
        async with suspended_queue(pid, tmp_path, rabbit.rabbitmq_vhost, RETRY_QUEUE):
            for _ in range(together):
                await hand.request(delivery_requested(content={"message": "fails"}))
            assert {result.outcome for result in await hand.results(together)} == {Outcome.RETRYING}
            for _ in range(500):  # one at a time, because results that come together are published as one message
                await hand.request(delivery_requested())
                [result] = await hand.results(1)
                assert result.outcome is Outcome.SENT
        assert {result.outcome for result in await hand.results(together)} == {Outcome.SENT}


@pytest.mark.usefixtures("hand")
async def test_message_that_cannot_be_encoded_leaves_the_channel_open(rabbit: RabbitSettings) -> None:
    broker = create_broker(rabbit, "test")
    publisher = ConfirmedPublisher(broker)
    good = OutgoingMessage(NOTIFICATIONS, "telegram", b"{}")
    assert await publisher.publish([good]) == [None]
    connection = await broker.connect()
    assert connection.transport is not None
    channels = len(connection.transport.connection.channels)
    for _ in range(5):
        with suppress(Exception):  # pamqp and aiormq raise different exception types
            await publisher.publish([OutgoingMessage(NOTIFICATIONS, "telegram", b"{}", {"header": object()})])
    assert await publisher.publish([good]) == [None]
    assert len(connection.transport.connection.channels) == channels
    await broker.stop()
