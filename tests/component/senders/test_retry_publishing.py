"""A sender republishes messages that the broker has not accepted, and does not dead-letter them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, Outcome
from notify_common.contracts.topology import NOTIFICATIONS
from notify_common.errors import PublishFailed, PublishRefused
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.sending.errors import TemporaryFailure
from notify_common.sending.metrics import SenderMetrics
from notify_common.sending.retry_publisher import RetryPublisher
from notify_common.sending.retry_schedule import RetrySchedule
from prometheus_client import CollectorRegistry
from support.alarms import listening_process, memory_alarm, suspended_queue
from support.amqp import Hand, prepare_topology
from support.fakes import FakeProvider
from support.servers import Servers, in_containers
from support.services import FIRST_DELAY, delivery_requested, eventually, running_sender
from support.unconfirmed import unconfirmed
from typing_extensions import override

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
            results = await hand.results(together)
            for _ in range(500):  # one at a time, because results that come together are published as one message
                await hand.request(request := delivery_requested())
                while request.delivery_id not in {result.delivery_id for result in results}:
                    results += await hand.results(1)
        while len(results) < 2 * together + 500:
            results += await hand.results(1)
    outcomes = Counter(result.outcome for result in results)
    assert outcomes == {Outcome.RETRYING: together, Outcome.SENT: together + 500}


@pytest.mark.skipif(in_containers(), reason="requires a private server")
async def test_retry_queue_that_commits_nothing_does_not_stop_the_channel(
    rabbit: RabbitSettings, hand: Hand, servers: Servers, tmp_path: Path
) -> None:
    concurrency, calls = 20, Counter[tuple[UUID, int]]()
    early: list[DeliveryRequested] = []
    sent, go = set[UUID](), asyncio.Event()

    async def fail_first(request: DeliveryRequested) -> str:
        calls[request.delivery_id, request.attempt] += 1
        if request.attempt == 1 and request.content.message == "fails":
            if calls.total() == concurrency:
                go.set()
            await go.wait()  # so that as many retries as the sender receives at once are published together
            raise TemporaryFailure("busy")
        if request.not_before is not None and datetime.now(UTC) < request.not_before:
            early.append(request)
        return "sent"

    async def request_many(message: str) -> set[UUID]:
        requests = [delivery_requested(content={"message": message}) for _ in range(3 * concurrency)]
        for request in requests:
            await hand.request(request)
        return {request.delivery_id for request in requests}

    async def sent_until(enough: Callable[[], bool]) -> None:
        while not enough():
            sent.update(each.delivery_id for each in await hand.results(1) if each.outcome is Outcome.SENT)

    async with running_sender(rabbit, FakeProvider(fail_first), concurrency=concurrency):
        pid = listening_process(servers.rabbit.rabbitmq_port)
        async with suspended_queue(pid, tmp_path, rabbit.rabbitmq_vhost, RETRY_QUEUE):
            failing = await request_many("fails")
            await sent_until(lambda: len(sent) > len(failing) - concurrency // 2)
            later = await request_many("fails") | await request_many("works")
            await sent_until(lambda: later <= sent)
            assert not failing <= sent  # the first retries were written to the suspended queue
        await sent_until(lambda: failing <= sent)
    assert (set(calls.values()), early) == ({1}, [])


async def test_retry_queue_that_refuses_does_not_stop_the_channel(rabbit: RabbitSettings, hand: Hand) -> None:
    concurrency, publisher = 4, unconfirmed(DELAY, failure=PublishRefused("full"))
    publisher.ended.set()

    async def fail_first(request: DeliveryRequested) -> str:
        if request.attempt == 1:
            raise TemporaryFailure("busy")
        return "sent"

    async with running_sender(rabbit, FakeProvider(fail_first), concurrency=concurrency, publisher_class=publisher):
        for _ in range(3 * concurrency):
            await hand.request(delivery_requested())
        results = await hand.results(6 * concurrency)
    assert Counter(result.outcome for result in results) == {
        Outcome.RETRYING: 3 * concurrency, Outcome.SENT: 3 * concurrency,
    }  # fmt: skip


class CountingPublisher(ConfirmedPublisher):
    """Counts how often RabbitMQ did not respond."""

    silent = 0

    @override
    async def responds(self, timeout: float) -> bool:
        responds = await super().responds(timeout)
        self.silent += not responds
        return responds


class HalfConfirmed(CountingPublisher):
    """Confirms only the first message of each batch for one retry queue."""

    @override
    async def publish(self, messages: Sequence[OutgoingMessage], **options: Any) -> list[PublishFailed | None]:
        if messages[0].routing_key != DELAY:
            return await super().publish(messages, **options)
        confirmations = [asyncio.get_running_loop().create_future() for _ in messages]
        confirmations[0].set_result(None)
        options["on_written"](confirmations)
        await confirmations[-1]
        return [None for _ in messages]


@asynccontextmanager
async def retry_publisher(
    rabbit: RabbitSettings, publisher_class: type[CountingPublisher] = CountingPublisher
) -> AsyncIterator[tuple[RetryPublisher, Sequence[CountingPublisher]]]:
    """Yield a `RetryPublisher` that gives up early, and the publishers of its queues."""
    broker, publishers = create_broker(rabbit, "test"), list[CountingPublisher]()

    def create_publisher() -> ConfirmedPublisher:
        publishers.append(publisher_class(broker))
        return publishers[-1]

    schedule = RetrySchedule(first_delay=FIRST_DELAY, max_attempts=3)
    await prepare_topology(rabbit, topology.sender(Channel.TELEGRAM, schedule.delays))
    metrics = SenderMetrics(CollectorRegistry(), Channel.TELEGRAM)
    await broker.connect()
    retries = RetryPublisher(
        create_publisher, channel=Channel.TELEGRAM, schedule=schedule, metrics=metrics, prefetch=8, give_up_after=0
    )
    yield retries, publishers
    await broker.stop()


@pytest.mark.skipif(in_containers(), reason="requires a private server")
async def test_retry_that_is_unconfirmed_for_long_goes_to_another_queue(
    rabbit: RabbitSettings, hand: Hand, servers: Servers, tmp_path: Path
) -> None:
    async with retry_publisher(rabbit) as (retries, _):
        request = delivery_requested()
        pid = listening_process(servers.rabbit.rabbitmq_port)
        async with suspended_queue(pid, tmp_path, rabbit.rabbitmq_vhost, RETRY_QUEUE):
            assert await retries.publish(request, datetime.now(UTC))
            first = await hand.next_message("notifications.telegram")
        # The retry is also in the suspended queue. No other one was written to it.
        second = await hand.next_message("notifications.telegram")
        assert first.body == second.body == request.body()
        assert await retries.publish(later := delivery_requested(), datetime.now(UTC))
        assert (await hand.next_message("notifications.telegram")).body == later.body()


async def test_confirmed_retry_of_an_unconfirmed_batch_goes_to_no_other_queue(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    async with retry_publisher(rabbit, HalfConfirmed) as (retries, _):
        first, second = delivery_requested(), delivery_requested()
        published = await asyncio.gather(*(retries.publish(each, datetime.now(UTC)) for each in (first, second)))
        assert published == [True, True]
        assert (await hand.next_message("notifications.telegram")).body == second.body()
        assert await retries.publish(last := delivery_requested(), datetime.now(UTC))
        assert (await hand.next_message("notifications.telegram")).body == last.body()


@pytest.mark.skipif(in_containers(), reason="requires a private server")
async def test_retry_that_is_unconfirmed_during_a_memory_alarm_is_published_once(
    rabbit: RabbitSettings, hand: Hand, servers: Servers, tmp_path: Path
) -> None:
    async with retry_publisher(rabbit) as (retries, publishers):
        assert await retries.publish(delivery_requested(), datetime.now(UTC))
        await hand.next_message("notifications.telegram")
        async with memory_alarm(listening_process(servers.rabbit.rabbitmq_port), tmp_path):
            publishing = asyncio.create_task(retries.publish(request := delivery_requested(), datetime.now(UTC)))

            async def is_silent() -> bool:
                return publishers[0].silent >= 2

            await eventually(is_silent, "RabbitMQ did not respond twice")
        assert await publishing
        assert (await hand.next_message("notifications.telegram")).body == request.body()
        assert await retries.publish(last := delivery_requested(), datetime.now(UTC))
        assert (await hand.next_message("notifications.telegram")).body == last.body()


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
