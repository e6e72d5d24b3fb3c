"""FastStream subscribers, as the status writer has them, against a RabbitMQ that goes away in every way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from faststream.rabbit import RabbitMessage
from notify_common.contracts import topology
from notify_common.errors import PoisonMessage
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.declaration import prepare_topology
from notify_common.rabbitmq.faststream_subscription import FastStreamSubscription
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.subscription import Subscription
from support.amqp import Hand, hand_on
from support.fakes import CuttableNetwork
from support.services import eventually

QUEUE = topology.results().queue.name


class Handler:
    """Remembers the bodies that it was given; it returns while it is `open`."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.ended: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()

    async def handle(self, body: bytes) -> None:
        self.begun.append(body)
        await self.open.wait()
        self.ended.append(body)

    async def has_begun(self, *bodies: bytes) -> None:
        async def begun() -> bool:
            return set(bodies) <= set(self.begun)

        await eventually(begun, f"{bodies} are handled")


async def decode(message: RabbitMessage) -> bytes:
    body: bytes = message.body
    if body == b"poison":
        raise PoisonMessage("it says so")
    return body


@pytest.fixture
async def hand(rabbit: RabbitSettings) -> AsyncIterator[Hand]:
    await prepare_topology(rabbit, [*topology.dead_letters(), topology.results()])
    async with hand_on(rabbit) as hand:
        yield hand


@pytest.fixture
async def publisher(rabbit: RabbitSettings) -> AsyncIterator[ConfirmedPublisher]:
    broker = create_broker(rabbit, "test")
    await broker.connect()
    yield ConfirmedPublisher(broker)
    await broker.stop()


def subscription(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, handler: Handler, *, graceful_timeout: float = 20
) -> FastStreamSubscription:
    return FastStreamSubscription(
        rabbit,
        "test",
        QUEUE,
        decode=decode,
        handle=handler.handle,
        prefetch=5,
        publisher=publisher,
        graceful_timeout=graceful_timeout,
    )


async def publish(hand: Hand, *bodies: bytes) -> None:
    for body in bodies:
        await hand.publish("notifications.results", "results", body)


def connection_tasks() -> set[asyncio.Task[Any]]:
    """The tasks in which aio-pika connects, for as long as it is not closed."""
    return {task for task in asyncio.all_tasks() if "connection_factory" in repr(task.get_coro())}


async def consumes(subscribed: Subscription) -> None:
    async def ready() -> bool:
        return await subscribed.problem() is None and subscribed.alive

    await eventually(ready, "it consumes")


async def test_poison_is_buried_with_its_reason_and_holds_up_nothing(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    async with subscription(rabbit, publisher, handler).running():
        await publish(hand, b"poison", b"x")
        dead = await hand.next_message("notifications.dead")
        await handler.has_begun(b"x")
    assert (dead.body, dead.headers["dead_reason"], dead.headers["dead_queue"]) == (b"poison", "it says so", QUEUE)
    assert await hand.depth(QUEUE) == 0


async def test_prefetch_limits_what_is_handled_at_once(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    handler.open.clear()
    async with subscription(rabbit, publisher, handler).running():
        await publish(hand, *(str(number).encode() for number in range(8)))

        async def full() -> bool:
            return len(handler.begun) == 5 and await hand.depth(QUEUE) == 3

        await eventually(full, "five are handled, three wait")
        handler.open.set()
        await handler.has_begun(b"7")
    assert await hand.depth(QUEUE) == 0


async def test_consumes_again_from_a_queue_that_was_deleted_and_declared_again(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    subscribed = subscription(rabbit, publisher, handler)
    async with subscribed.running():
        await consumes(subscribed)
        for body in (b"first", b"second"):
            await hand.channel.queue_delete(QUEUE)

            async def has_ended() -> bool:
                return not subscribed.alive

            await eventually(has_ended, "the consumer has ended")
            await asyncio.sleep(0.6)  # the queue is missed more than once
            assert await subscribed.problem() is not None
            await prepare_topology(rabbit, [topology.results()])
            await consumes(subscribed)
            await publish(hand, body)
            await handler.has_begun(body)
    assert await hand.depth(QUEUE) == 0


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_message_whose_connection_is_lost_is_delivered_again(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    monkeypatch.setattr("notify_common.rabbitmq.connection.HEARTBEAT", 1)  # noticed after about three of them
    handler = Handler()
    handler.open.clear()
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        far = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        subscribed = subscription(far, publisher, handler)
        async with subscribed.running():
            await publish(hand, b"x")
            await handler.has_begun(b"x")
            if frozen:
                network.freeze()

                async def noticed() -> bool:
                    return not subscribed.alive

                await eventually(noticed, "the connection is given up")
                await network.thaw()
            else:
                await network.cut()

            async def came_again() -> bool:
                return len(handler.begun) == 2

            await eventually(came_again, "the message is delivered again")
            handler.open.set()
            await consumes(subscribed)
            await publish(hand, b"y")
            await handler.has_begun(b"y")
    assert handler.ended == [b"x", b"y"]
    assert await hand.depth(QUEUE) == 0


async def test_a_graceful_stop_finishes_and_acks_what_is_in_flight(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    handler.open.clear()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(subscription(rabbit, publisher, handler).running())
        await publish(hand, b"x")
        await handler.has_begun(b"x")
        stopping = asyncio.create_task(stack.pop_all().aclose())
        finished, _ = await asyncio.wait({stopping}, timeout=0.3)
        assert not finished
        await publish(hand, b"for the next one")
        handler.open.set()
        await stopping
    assert handler.begun == handler.ended == [b"x"]
    assert await hand.depth(QUEUE) == 1


async def test_a_stop_while_the_connection_hangs_leaves_nothing_running(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher
) -> None:
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        network.freeze()
        far = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        connecting = connection_tasks()
        async with subscription(far, publisher, Handler()).running():
            await asyncio.sleep(0.3)
            assert connection_tasks() > connecting
        assert connection_tasks() <= connecting


async def test_a_handler_that_does_not_end_in_time_leaves_its_message_to_the_broker(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler, body = Handler(), uuid4().bytes
    handler.open.clear()
    async with subscription(rabbit, publisher, handler, graceful_timeout=0.2).running():
        await publish(hand, body)
        await handler.has_begun(body)
    assert handler.ended == []

    async def is_back() -> bool:
        return await hand.depth(QUEUE) == 1

    await eventually(is_back, "the message is back")
