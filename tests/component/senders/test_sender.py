"""A sender with a fake provider, tested against RabbitMQ."""

import asyncio
import json
import weakref
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import MAX_REQUEST_BYTES, DeliveryRequested, DeliveryResult, ErrorClass, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.errors import PermanentFailure, TemporaryFailure, Throttled
from support.amqp import Hand, prepare_topology
from support.fakes import CuttableNetwork, FakeProvider
from support.servers import ALL_RIGHTS, WITHOUT_CONFIGURE, Servers, permit
from support.services import delivery_requested as request
from support.services import eventually, running_sender


def failing(*failures: Exception) -> FakeProvider:
    """Return a provider that raises these errors in order and then accepts every request."""
    remaining = list(failures)

    async def respond(_: DeliveryRequested) -> str:
        if remaining:
            raise remaining.pop(0)
        return "sent at last"

    return FakeProvider(respond)


def outcomes(results: list[DeliveryResult]) -> list[tuple[Outcome, int, int]]:
    return [(result.outcome, result.attempt, result.failures) for result in results]


async def assert_empty(hand: Hand, *queues: str) -> None:
    for queue in queues:
        assert await hand.depth(queue) == 0


async def test_delivery_is_sent_and_its_result_is_published(rabbit: RabbitSettings, hand: Hand) -> None:
    provider, requested = FakeProvider(), request(recipient="42")
    async with running_sender(rabbit, provider):
        await hand.request(requested)
        [result] = await hand.results(1)
    assert provider.calls == [requested]
    assert (result.delivery_id, result.outcome) == (requested.delivery_id, Outcome.SENT)
    assert result.provider_message_id == "message-1"
    await assert_empty(hand, "notifications.telegram", "notifications.dead", "notifications.dead.telegram")


async def test_failed_attempt_is_retried_after_its_delay(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = failing(TemporaryFailure("busy"))
    async with running_sender(rabbit, provider):
        await hand.request(request())
        results = await hand.results(2)
    assert outcomes(results) == [(Outcome.RETRYING, 1, 1), (Outcome.SENT, 2, 1)]
    assert results[0].next_attempt_at is not None
    assert results[1].started_at >= results[0].next_attempt_at


async def test_delivery_fails_when_its_retry_budget_is_used_up(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = failing(*[TemporaryFailure("busy")] * 5)
    async with running_sender(rabbit, provider, max_attempts=3):
        await hand.request(request())
        results = await hand.results(3)
    assert outcomes(results) == [(Outcome.RETRYING, 1, 1), (Outcome.RETRYING, 2, 2), (Outcome.FAILED, 3, 3)]
    assert len(provider.calls) == 3
    await assert_empty(hand, "notifications.telegram", "notifications.dead", "notifications.dead.telegram")


async def test_permanent_failure_is_not_retried(rabbit: RabbitSettings, hand: Hand) -> None:
    async with running_sender(rabbit, failing(PermanentFailure("blocked"))):
        await hand.request(request())
        [result] = await hand.results(1)
    assert (result.outcome, result.error_class, result.error_code) == (Outcome.FAILED, ErrorClass.PERMANENT, "blocked")


async def test_throttled_call_uses_no_retry_budget(rabbit: RabbitSettings, hand: Hand) -> None:
    wait = timedelta(milliseconds=120)  # between two retry delays, so that the message is delayed more than once
    provider = failing(*[Throttled("429", retry_after=wait)] * 2, TemporaryFailure("busy"))
    async with running_sender(rabbit, provider, max_attempts=2):
        await hand.request(request())
        results = await hand.results(4)
    assert outcomes(results) == [
        (Outcome.THROTTLED, 1, 0), (Outcome.THROTTLED, 2, 0), (Outcome.RETRYING, 3, 1), (Outcome.SENT, 4, 1)
    ]  # fmt: skip
    for earlier, later in pairwise(results):
        assert earlier.next_attempt_at is not None
        assert later.started_at >= earlier.next_attempt_at


async def test_hanging_provider_call_times_out(rabbit: RabbitSettings, hand: Hand) -> None:
    async def hang(_: DeliveryRequested) -> str:
        await asyncio.Event().wait()
        return "never"

    async with running_sender(rabbit, FakeProvider(hang), max_attempts=1, provider_timeout=0.05):
        await hand.request(request())
        [result] = await hand.results(1)
    assert (result.outcome, result.error_class) == (Outcome.FAILED, ErrorClass.TIMEOUT)


async def test_message_received_too_early_is_delayed_without_an_attempt(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    not_before = datetime.now(UTC) + timedelta(milliseconds=300)
    async with running_sender(rabbit, provider):
        await hand.request(request(not_before=not_before))
        [result] = await hand.results(1)
    assert len(provider.calls) == 1
    assert result.started_at >= not_before


async def test_expired_delivery_is_not_sent(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider):
        await hand.request(request(expires_at=datetime.now(UTC) - timedelta(seconds=1), attempt=2, failures=1))
        [result] = await hand.results(1)
    assert outcomes([result]) == [(Outcome.EXPIRED, 1, 1)]
    assert provider.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{}",
        b"[]",
        b"null",
        request(channel=Channel.EMAIL).model_dump_json().encode(),
        request().model_dump_json().encode() + b" " * MAX_REQUEST_BYTES,
    ],
    ids=["empty", "bytes", "object", "list", "null", "other channel", "too long"],
)
async def test_poison_message_is_dead_lettered_without_delaying_other_messages(
    rabbit: RabbitSettings, hand: Hand, body: bytes
) -> None:
    async with running_sender(rabbit, FakeProvider()):
        await hand.publish("notifications", "telegram", body)
        await hand.request(request())
        [result] = await hand.results(1)
        dead = await hand.next_message("notifications.dead.telegram")
    assert result.outcome is Outcome.SENT
    assert dead.body == body
    assert (await hand.next_message("notifications.dead.telegram.failed")).body == body


async def test_message_that_triggers_a_bug_is_dead_lettered_and_not_retried(rabbit: RabbitSettings, hand: Hand) -> None:
    provider, requested = failing(ZeroDivisionError()), request()
    async with running_sender(rabbit, provider):
        await hand.request(requested)
        dead = await hand.next_message("notifications.dead.telegram")
    assert DeliveryRequested.model_validate_json(dead.body) == requested
    assert len(provider.calls) == 1


async def test_results_are_batched_only_under_load(rabbit: RabbitSettings, hand: Hand) -> None:
    go = asyncio.Event()

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent"

    provider = FakeProvider(wait)
    async with running_sender(rabbit, provider, concurrency=100):
        for _ in range(100):
            await hand.request(request())

        async def all_called() -> bool:
            return len(provider.calls) == 100

        await eventually(all_called, "100 attempts are in flight")
        go.set()
        first = json.loads((await hand.next_message("notifications.results.telegram")).body)["results"]
        rest = await hand.results(100 - len(first))
        assert len(rest) == 100 - len(first)
        assert await hand.depth("notifications.results.telegram") < 20
        await hand.request(request())
        assert len(json.loads((await hand.next_message("notifications.results.telegram")).body)["results"]) == 1


async def test_concurrency_limits_the_messages_taken_from_the_broker(rabbit: RabbitSettings, hand: Hand) -> None:
    go, running, max_running = asyncio.Event(), 0, 0

    async def count(_: DeliveryRequested) -> str:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        await go.wait()
        running -= 1
        return "sent"

    provider = FakeProvider(count)
    async with running_sender(rabbit, provider, concurrency=7):
        for _ in range(20):
            await hand.request(request())

        async def is_full() -> bool:
            return running == 7 and await hand.depth("notifications.telegram") == 13

        await eventually(is_full, "7 attempts are in flight and 13 messages are waiting in the broker")
        go.set()
        await hand.results(20)
    assert max_running == 7


async def test_no_call_begins_while_results_cannot_be_reported(
    servers: Servers, rabbit: RabbitSettings, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    provider, reported, held = FakeProvider(), request(), request()
    async with running_sender(rabbit, provider):
        await hand.channel.queue_delete("notifications.results.telegram")
        permit(servers, rabbit, WITHOUT_CONFIGURE)  # otherwise, the sender would declare the queue again
        await hand.request(reported)

        async def calls_are_held() -> bool:
            return any("results cannot be reported" in message for message in caplog.messages)

        await eventually(calls_are_held, "the sender has noticed that results are not confirmed")
        await hand.request(held)
        await hand.publish("notifications", "telegram", b"poison")
        await hand.next_message("notifications.dead.telegram")  # the sender has received everything
        assert provider.calls == [reported]
        permit(servers, rabbit, ALL_RIGHTS)
        await prepare_topology(rabbit, [topology.results(Channel.TELEGRAM)])
        found = await hand.results(2)
    assert [result.delivery_id for result in found] == [reported.delivery_id, held.delivery_id]
    assert provider.calls == [reported, held]


async def test_duplicate_request_is_not_sent_again_but_reported_again(rabbit: RabbitSettings, hand: Hand) -> None:
    # The first result may have been lost after RabbitMQ had confirmed it.
    provider, requested = failing(TemporaryFailure("busy")), request()
    async with running_sender(rabbit, provider):
        await hand.request(requested)
        first, _ = await hand.results(2)
        await hand.request(requested)
        assert await hand.results(1) == [first]
        marker = request()
        await hand.request(marker)
        assert [result.delivery_id for result in await hand.results(1)] == [marker.delivery_id]
    assert [(call.delivery_id, call.attempt) for call in provider.calls] == [
        (requested.delivery_id, 1), (requested.delivery_id, 2), (marker.delivery_id, 1)
    ]  # fmt: skip


async def test_lost_connection_neither_cancels_nor_repeats_the_provider_call(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    go, requested = asyncio.Event(), request()

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent once"

    provider = FakeProvider(wait)
    async with running_sender(through_network, provider):
        await hand.request(requested)
        await provider.called.wait()
        await network.cut()
        go.set()
        [result] = await hand.results(1)
        await hand.request(request())
        await hand.results(1)
    assert (result.outcome, result.provider_message_id) == (Outcome.SENT, "sent once")
    assert [call.delivery_id for call in provider.calls].count(requested.delivery_id) == 1
    # The sender has stopped, so any unacked message would be back in its queue.
    await assert_empty(hand, "notifications.telegram", "notifications.dead", "notifications.dead.telegram")
    await network.close()


async def test_frozen_connection_loses_no_result_and_repeats_no_provider_call(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    # It takes about three heartbeats to notice a frozen connection, so a short heartbeat keeps the test fast.
    rabbit = rabbit.model_copy(update={"rabbitmq_heartbeat": 1})
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    go, requested = asyncio.Event(), request()

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent once"

    provider = FakeProvider(wait)
    async with running_sender(through_network, provider) as sender:
        closed = asyncio.Event()
        (await sender.broker.connect()).close_callbacks.add(lambda *_: closed.set())
        await hand.request(requested)
        await provider.called.wait()
        network.freeze()
        go.set()  # the result is being published when the connection is declared dead
        await closed.wait()
        await network.thaw()
        [result] = await hand.results(1)
        await hand.request(request())
        await hand.results(1)
    assert (result.outcome, result.provider_message_id) == (Outcome.SENT, "sent once")
    assert [call.delivery_id for call in provider.calls].count(requested.delivery_id) == 1
    await assert_empty(hand, "notifications.telegram", "notifications.dead", "notifications.dead.telegram")
    await network.close()


async def test_graceful_stop_finishes_attempts_in_flight(rabbit: RabbitSettings, hand: Hand) -> None:
    go = asyncio.Event()

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent"

    provider = FakeProvider(wait)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running_sender(rabbit, provider))
        await hand.request(request())
        await provider.called.wait()
        stopping = asyncio.create_task(stack.pop_all().aclose())
        finished, _ = await asyncio.wait({stopping}, timeout=0.2)
        assert not finished
        go.set()
        await stopping
    assert [result.outcome for result in await hand.results(1)] == [Outcome.SENT]
    await assert_empty(hand, "notifications.telegram")


async def test_sender_without_an_active_consumer_is_not_ready(rabbit: RabbitSettings, hand: Hand) -> None:
    async with running_sender(rabbit, FakeProvider()) as sender:

        async def is_ready() -> bool:
            return await sender.subscriptions[0].problem() is None

        await eventually(is_ready, "the consumer is active")
        await hand.channel.queue_delete(sender.subscriptions[0].queue)

        async def is_not_ready() -> bool:
            return await sender.subscriptions[0].problem() is not None

        await eventually(is_not_ready, "the sender is not ready without its queue, although it is connected")


async def test_consumer_restores_its_deleted_queue_and_resumes(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider) as sender:
        await hand.request(request())
        await provider.called.wait()
        await hand.channel.queue_delete("notifications.telegram")

        async def has_noticed() -> bool:
            return not sender.subscriptions[0].alive

        async def is_consuming() -> bool:
            return await sender.subscriptions[0].problem() is None

        await eventually(has_noticed, "the consumer has noticed that its queue is gone")
        await eventually(is_consuming, "the new queue has a consumer")
        await hand.request(another := request())
        assert [result.outcome for result in await hand.results(2)] == [Outcome.SENT] * 2
    assert another in provider.calls


async def test_redelivered_request_schedules_only_one_retry(rabbit: RabbitSettings, hand: Hand) -> None:
    async def refuse(_: DeliveryRequested) -> str:
        raise TemporaryFailure("no")

    provider, requested = FakeProvider(refuse), request()
    async with running_sender(rabbit, provider, first_delay=timedelta(minutes=5)):
        await hand.request(requested)

        async def is_scheduled() -> bool:
            return await hand.depth("notifications.telegram.retry.300000") == 1

        await eventually(is_scheduled, "the retry is scheduled")
        # Publish the request again, as RabbitMQ redelivers a message if its ack was lost.
        await hand.request(requested)
        await hand.request(request())
        await hand.results(2)
    assert [call.delivery_id for call in provider.calls].count(requested.delivery_id) == 1
    assert await hand.depth("notifications.telegram.retry.300000") == 2
    assert await hand.depth("notifications.telegram") == 0


@pytest.mark.parametrize("max_attempts", [1, 3], ids=["final failure", "retry"])
async def test_failed_attempt_keeps_nothing_of_its_message_in_memory(
    rabbit: RabbitSettings, hand: Hand, max_attempts: int
) -> None:
    class Rendered:
        """A message in the provider's form, which may be large."""

    rendered: list[weakref.ref[Rendered]] = []

    async def refuse(_: DeliveryRequested) -> str:
        message = Rendered()
        rendered.append(weakref.ref(message))
        try:
            return str(int("a response that is no number"))
        except ValueError:
            raise TemporaryFailure("busy") from None  # the first error remains its `__context__`

    async with running_sender(
        rabbit, FakeProvider(refuse), max_attempts=max_attempts, first_delay=timedelta(minutes=5)
    ):
        await hand.request(request())
        await hand.results(1)

        async def is_released() -> bool:
            return rendered[0]() is None

        await eventually(is_released, "the attempt is remembered without its message", timeout=5)
