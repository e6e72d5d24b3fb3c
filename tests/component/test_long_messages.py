"""Messages that RabbitMQ accepted before it had a lower limit, so that nobody can publish them again."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from notify_common.errors import PublishImpossible
from notify_common.rabbitmq import dead_letters
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.consumer import Message
from notify_common.rabbitmq.dead_letters import MAX_BODY_BYTES, dead_letter, dead_letter_failed
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from support.amqp import TIMEOUT, Hand
from support.fakes import FakeProvider
from support.services import running_sender

QUEUE = "notifications.telegram"
TOO_LONG = b" " * (MAX_BODY_BYTES + 1)  # for the brokers of the tests, too


@pytest.fixture
async def publisher(rabbit: RabbitSettings) -> AsyncIterator[ConfirmedPublisher]:
    broker = create_broker(rabbit, "test")
    await broker.connect()
    yield ConfirmedPublisher(broker)
    await broker.stop()


async def test_poison_message_that_is_too_long_to_be_published_is_dead_lettered_whole_by_rabbitmq(
    rabbit: RabbitSettings, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_BODY_BYTES", 1000)
    body = b" " * 1001
    async with running_sender(rabbit, FakeProvider()):
        await hand.publish("notifications", "telegram", body, {"delivery_id": "d"})
        dead = await hand.next_message("notifications.dead")
    assert (dead.body, dead.headers["delivery_id"]) == (body, "d")
    assert dead_letters.queue_where_it_died(dead.headers) == QUEUE
    assert await hand.depth("notifications.dead.telegram") == 0


@pytest.mark.usefixtures("hand")
async def test_dead_lettering_a_message_that_the_broker_does_not_accept_ends_at_once(
    publisher: ConfirmedPublisher,
) -> None:
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(PublishImpossible, match="max size"):
            await dead_letter(publisher, TOO_LONG, queue=QUEUE, reason="too long")


async def test_message_is_not_published_if_the_broker_has_a_lower_limit_than_ours(
    publisher: ConfirmedPublisher, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_BODY_BYTES", 2 * MAX_BODY_BYTES)
    error = ValueError()
    async with asyncio.timeout(TIMEOUT):
        assert not await dead_letter_failed(publisher, Message(TOO_LONG, {}, None), error, queue=QUEUE)
        assert await dead_letter_failed(publisher, Message(b"short", {}, None), error, queue=QUEUE)
    assert (await hand.next_message("notifications.dead.telegram")).body == b"short"
