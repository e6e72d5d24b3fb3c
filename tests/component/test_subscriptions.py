"""FastStream subscribers, as the status writer uses them, during RabbitMQ failures."""

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
from notify_common.rabbitmq.faststream_subscription import FastStreamSubscription
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.subscription import Subscription
from support.amqp import Hand, hand_on, prepare_topology
from support.fakes import ChannelCuttingNetwork, CuttableNetwork
from support.services import eventually

QUEUE = topology.results().queue.name


class Handler:
    """A message handler that records each body and does not return until `open` is set."""

    def __init__(self) -> None:
        self.started: list[bytes] = []
        self.finished: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()

    async def handle(self, body: bytes) -> None:
        self.started.append(body)
        await self.open.wait()
        self.finished.append(body)

    async def wait_until_started(self, *bodies: bytes) -> None:
        async def all_started() -> bool:
            return set(bodies) <= set(self.started)

        await eventually(all_started, f"the handler has started on {bodies}")


async def decode(message: RabbitMessage) -> bytes:
    body: bytes = message.body
    if body == b"poison":
        raise PoisonMessage("marked as poison")
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
    """Return the tasks in which aio-pika connects; they run until their connection is closed."""
    return {task for task in asyncio.all_tasks() if "connection_factory" in repr(task.get_coro())}


async def wait_until_consuming(subscribed: Subscription) -> None:
    async def is_ready() -> bool:
        return await subscribed.problem() is None and subscribed.alive

    await eventually(is_ready, "the subscription is consuming")


async def test_poison_message_is_dead_lettered_with_its_reason_without_delaying_others(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    async with subscription(rabbit, publisher, handler).running():
        await publish(hand, b"poison", b"x")
        dead = await hand.next_message("notifications.dead")
        await handler.wait_until_started(b"x")
    assert (dead.body, dead.headers["dead_reason"], dead.headers["dead_queue"]) == (
        b"poison",
        "marked as poison",
        QUEUE,
    )
    assert await hand.depth(QUEUE) == 0


async def test_prefetch_limits_concurrently_handled_messages(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    handler.open.clear()
    async with subscription(rabbit, publisher, handler).running():
        await publish(hand, *(str(number).encode() for number in range(8)))

        async def is_full() -> bool:
            return len(handler.started) == 5 and await hand.depth(QUEUE) == 3

        await eventually(is_full, "five messages are being handled and three are waiting")
        handler.open.set()
        await handler.wait_until_started(b"7")
    assert await hand.depth(QUEUE) == 0


async def test_subscription_resumes_when_its_deleted_queue_is_declared_again(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    subscribed = subscription(rabbit, publisher, handler)
    async with subscribed.running():
        await wait_until_consuming(subscribed)
        for body in (b"first", b"second"):
            await hand.channel.queue_delete(QUEUE)

            async def has_ended() -> bool:
                return not subscribed.alive

            await eventually(has_ended, "the consumer has ended")
            await asyncio.sleep(0.6)  # long enough for more than one attempt to consume
            assert await subscribed.problem() is not None
            await prepare_topology(rabbit, [topology.results()])
            await wait_until_consuming(subscribed)
            await publish(hand, body)
            await handler.wait_until_started(body)
    assert await hand.depth(QUEUE) == 0


@pytest.mark.parametrize("frozen", [False, True])
async def test_message_is_redelivered_after_its_connection_is_lost(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand, frozen: bool
) -> None:
    # It takes about three heartbeats to notice a frozen connection, so a short heartbeat keeps the test fast.
    rabbit = rabbit.model_copy(update={"rabbitmq_heartbeat": 1})
    handler = Handler()
    handler.open.clear()
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        subscribed = subscription(through_network, publisher, handler)
        async with subscribed.running():
            await publish(hand, b"x")
            await handler.wait_until_started(b"x")
            if frozen:
                network.freeze()

                async def has_noticed() -> bool:
                    return not subscribed.alive

                await eventually(has_noticed, "the connection is declared dead")
                await network.thaw()
            else:
                await network.cut()

            async def was_redelivered() -> bool:
                return len(handler.started) == 2

            await eventually(was_redelivered, "the message is redelivered")
            handler.open.set()
            await wait_until_consuming(subscribed)
            await publish(hand, b"y")
            await handler.wait_until_started(b"y")
    assert handler.finished == [b"x", b"y"]
    assert await hand.depth(QUEUE) == 0


async def test_graceful_stop_finishes_and_acks_messages_in_flight(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler = Handler()
    handler.open.clear()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(subscription(rabbit, publisher, handler).running())
        await publish(hand, b"x")
        await handler.wait_until_started(b"x")
        stopping = asyncio.create_task(stack.pop_all().aclose())
        finished, _ = await asyncio.wait({stopping}, timeout=0.3)
        assert not finished
        await publish(hand, b"for the next one")
        handler.open.set()
        await stopping
    assert handler.started == handler.finished == [b"x"]
    assert await hand.depth(QUEUE) == 1


async def test_stop_during_a_hanging_connection_attempt_leaves_no_task_running(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher
) -> None:
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        network.freeze()
        through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        connecting = connection_tasks()
        async with subscription(through_network, publisher, Handler()).running():
            await asyncio.sleep(0.3)
            assert connection_tasks() > connecting
        assert connection_tasks() <= connecting


async def test_connection_that_is_lost_before_it_has_a_channel_is_not_opened_again(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    """Otherwise aio-pika would keep it open for as long as the process runs, next to those that replace it."""
    before = connection_tasks()
    async with ChannelCuttingNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        network.cuts = 2
        cuttable = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        async with subscription(cuttable, publisher, handler := Handler()).running():
            await publish(hand, b"x")
            await handler.wait_until_started(b"x")
            assert len(connection_tasks() - before) == 1


async def test_unfinished_message_is_requeued_after_the_stop_timeout(
    rabbit: RabbitSettings, publisher: ConfirmedPublisher, hand: Hand
) -> None:
    handler, body = Handler(), uuid4().bytes
    handler.open.clear()
    async with subscription(rabbit, publisher, handler, graceful_timeout=0.2).running():
        await publish(hand, body)
        await handler.wait_until_started(body)
    assert handler.finished == []

    async def is_back() -> bool:
        return await hand.depth(QUEUE) == 1

    await eventually(is_back, "the message is back in its queue")
