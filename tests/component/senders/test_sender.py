"""A sender against RabbitMQ, with a fake provider."""

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, DeliveryResult, ErrorClass, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.declaration import prepare_topology
from notify_common.sending.errors import PermanentFailure, TemporaryFailure, Throttled
from support.amqp import Hand
from support.fakes import CuttableNetwork, FakeProvider
from support.services import delivery_requested as request
from support.services import eventually, running_sender


def failing(*failures: Exception) -> FakeProvider:
    """Raises these one after the other, then sends."""
    remaining = list(failures)

    async def answer(_: DeliveryRequested) -> str:
        if remaining:
            raise remaining.pop(0)
        return "sent at last"

    return FakeProvider(answer)


def story(results: list[DeliveryResult]) -> list[tuple[Outcome, int, int]]:
    return [(result.outcome, result.attempt, result.failures) for result in results]


async def nothing_waits(hand: Hand, *queues: str) -> None:
    for queue in queues:
        assert await hand.depth(queue) == 0


async def test_a_delivery_is_sent_and_reported(rabbit: RabbitSettings, hand: Hand) -> None:
    provider, wanted = FakeProvider(), request(recipient="42")
    async with running_sender(rabbit, provider):
        await hand.request(wanted)
        [result] = await hand.results(1)
    assert provider.calls == [wanted]
    assert (result.delivery_id, result.outcome) == (wanted.delivery_id, Outcome.SENT)
    assert result.provider_message_id == "message-1"
    await nothing_waits(hand, "notifications.telegram", "notifications.dead")


async def test_a_failed_attempt_is_tried_again_after_its_delay(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = failing(TemporaryFailure("busy"))
    async with running_sender(rabbit, provider):
        await hand.request(request())
        results = await hand.results(2)
    assert story(results) == [(Outcome.RETRYING, 1, 1), (Outcome.SENT, 2, 1)]
    assert results[0].next_attempt_at is not None
    assert results[1].started_at >= results[0].next_attempt_at


async def test_retries_are_exhausted_after_the_budget(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = failing(*[TemporaryFailure("busy")] * 5)
    async with running_sender(rabbit, provider, max_attempts=3):
        await hand.request(request())
        results = await hand.results(3)
    assert story(results) == [(Outcome.RETRYING, 1, 1), (Outcome.RETRYING, 2, 2), (Outcome.FAILED, 3, 3)]
    assert len(provider.calls) == 3
    await nothing_waits(hand, "notifications.telegram", "notifications.dead")


async def test_a_permanent_failure_is_not_tried_again(rabbit: RabbitSettings, hand: Hand) -> None:
    async with running_sender(rabbit, failing(PermanentFailure("blocked"))):
        await hand.request(request())
        [result] = await hand.results(1)
    assert (result.outcome, result.error_class, result.error_code) == (Outcome.FAILED, ErrorClass.PERMANENT, "blocked")


async def test_a_throttled_call_uses_no_budget(rabbit: RabbitSettings, hand: Hand) -> None:
    wait = timedelta(milliseconds=120)  # no rung of the ladder: it is parked more than once
    provider = failing(*[Throttled("429", retry_after=wait)] * 2, TemporaryFailure("busy"))
    async with running_sender(rabbit, provider, max_attempts=2):
        await hand.request(request())
        results = await hand.results(4)
    assert story(results) == [
        (Outcome.THROTTLED, 1, 0), (Outcome.THROTTLED, 2, 0), (Outcome.RETRYING, 3, 1), (Outcome.SENT, 4, 1)
    ]  # fmt: skip
    for earlier, later in pairwise(results):
        assert earlier.next_attempt_at is not None
        assert later.started_at >= earlier.next_attempt_at


async def test_a_provider_that_hangs_is_a_timeout(rabbit: RabbitSettings, hand: Hand) -> None:
    async def hang(_: DeliveryRequested) -> str:
        await asyncio.Event().wait()
        return "never"

    async with running_sender(rabbit, FakeProvider(hang), max_attempts=1, provider_timeout=0.05):
        await hand.request(request())
        [result] = await hand.results(1)
    assert (result.outcome, result.error_class) == (Outcome.FAILED, ErrorClass.TIMEOUT)


async def test_a_message_that_comes_too_early_is_parked_without_an_attempt(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    not_before = datetime.now(UTC) + timedelta(milliseconds=300)
    async with running_sender(rabbit, provider):
        await hand.request(request(not_before=not_before))
        [result] = await hand.results(1)
    assert len(provider.calls) == 1
    assert result.started_at >= not_before


async def test_what_has_expired_is_not_sent(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider):
        await hand.request(request(expires_at=datetime.now(UTC) - timedelta(seconds=1), attempt=2, failures=1))
        [result] = await hand.results(1)
    assert story([result]) == [(Outcome.EXPIRED, 1, 1)]
    assert provider.calls == []


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"{}", b"[]", b"null", request(channel=Channel.EMAIL).model_dump_json().encode()],
    ids=["empty", "bytes", "object", "list", "null", "other channel"],
)
async def test_poison_goes_to_the_dead_letters_and_stops_nobody(
    rabbit: RabbitSettings, hand: Hand, body: bytes
) -> None:
    async with running_sender(rabbit, FakeProvider()):
        await hand.publish("notifications", "telegram", body)
        await hand.request(request())
        [result] = await hand.results(1)
        dead = await hand.next_message("notifications.dead")
    assert result.outcome is Outcome.SENT
    assert dead.body == body
    assert (await hand.next_message("notifications.dead.inbox")).body == body


async def test_a_bug_in_a_provider_is_poison_not_a_hot_loop(rabbit: RabbitSettings, hand: Hand) -> None:
    provider, wanted = failing(ZeroDivisionError()), request()
    async with running_sender(rabbit, provider):
        await hand.request(wanted)
        dead = await hand.next_message("notifications.dead")
    assert DeliveryRequested.model_validate_json(dead.body) == wanted
    assert len(provider.calls) == 1


async def test_under_load_results_leave_in_groups_and_alone_at_once(rabbit: RabbitSettings, hand: Hand) -> None:
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

        await eventually(all_called, "100 attempts are under way")
        go.set()
        first = json.loads((await hand.next_message("notifications.results")).body)["results"]
        rest = await hand.results(100 - len(first))
        assert len(rest) == 100 - len(first)
        assert await hand.depth("notifications.results") < 20
        await hand.request(request())
        assert len(json.loads((await hand.next_message("notifications.results")).body)["results"]) == 1


async def test_concurrency_is_the_prefetch(rabbit: RabbitSettings, hand: Hand) -> None:
    go, running, most = asyncio.Event(), 0, 0

    async def count(_: DeliveryRequested) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return "sent"

    provider = FakeProvider(count)
    async with running_sender(rabbit, provider, concurrency=7):
        for _ in range(20):
            await hand.request(request())

        async def full() -> bool:
            return running == 7 and await hand.depth("notifications.telegram") == 13

        await eventually(full, "7 attempts are under way and 13 wait in the broker")
        go.set()
        await hand.results(20)
    assert most == 7


async def test_a_delivery_that_comes_twice_is_sent_once(rabbit: RabbitSettings, hand: Hand) -> None:
    provider, wanted = failing(TemporaryFailure("busy")), request()
    async with running_sender(rabbit, provider):
        await hand.request(wanted)
        await hand.request(wanted)
        await hand.results(2)
        await hand.request(wanted)
        marker = request()
        await hand.request(marker)
        results = await hand.results(1)
    assert [result.delivery_id for result in results] == [marker.delivery_id]
    assert [(call.delivery_id, call.attempt) for call in provider.calls] == [
        (wanted.delivery_id, 1), (wanted.delivery_id, 2), (marker.delivery_id, 1)
    ]  # fmt: skip


async def test_a_lost_connection_neither_cancels_nor_repeats_the_provider_call(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    go, wanted = asyncio.Event(), request()

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent once"

    provider = FakeProvider(wait)
    async with running_sender(through_network, provider):
        await hand.request(wanted)
        await provider.called.wait()
        await network.cut()
        go.set()
        [result] = await hand.results(1)
        await hand.request(request())
        await hand.results(1)
    assert (result.outcome, result.provider_message_id) == (Outcome.SENT, "sent once")
    assert [call.delivery_id for call in provider.calls].count(wanted.delivery_id) == 1
    # With the sender gone, what it had not acked would be back.
    await nothing_waits(hand, "notifications.telegram", "notifications.dead")
    await network.close()


async def test_a_connection_that_freezes_loses_no_result_and_repeats_no_call(
    rabbit: RabbitSettings, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_common.rabbitmq.connection.HEARTBEAT", 1)  # noticed after about three of them
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    go, wanted = asyncio.Event(), request()

    async def wait(_: DeliveryRequested) -> str:
        await go.wait()
        return "sent once"

    provider = FakeProvider(wait)
    async with running_sender(through_network, provider) as sender:
        closed = asyncio.Event()
        (await sender.broker.connect()).close_callbacks.add(lambda *_: closed.set())
        await hand.request(wanted)
        await provider.called.wait()
        network.freeze()
        go.set()  # its result is on its way when the connection is given up
        await closed.wait()
        await network.thaw()
        [result] = await hand.results(1)
        await hand.request(request())
        await hand.results(1)
    assert (result.outcome, result.provider_message_id) == (Outcome.SENT, "sent once")
    assert [call.delivery_id for call in provider.calls].count(wanted.delivery_id) == 1
    await nothing_waits(hand, "notifications.telegram", "notifications.dead")
    await network.close()


async def test_a_graceful_stop_finishes_what_is_in_flight(rabbit: RabbitSettings, hand: Hand) -> None:
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
    await nothing_waits(hand, "notifications.telegram")


async def test_ready_means_that_the_consumer_consumes(rabbit: RabbitSettings, hand: Hand) -> None:
    async with running_sender(rabbit, FakeProvider()) as sender:

        async def ready() -> bool:
            return await sender.subscriptions[0].problem() is None

        await eventually(ready, "it consumes")
        await hand.channel.queue_delete(sender.subscriptions[0].queue)

        async def not_ready() -> bool:
            return await sender.subscriptions[0].problem() is not None

        await eventually(not_ready, "a consumer without its queue is not ready, although it is connected")


async def test_a_consumer_whose_queue_comes_back_consumes_again(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider) as sender:
        await hand.request(request())
        await provider.called.wait()
        await hand.channel.queue_delete("notifications.telegram")

        async def consumes() -> bool:
            return await sender.subscriptions[0].problem() is None

        async def was_cancelled() -> bool:
            # Not before: RabbitMQ 3.10 confuses a new queue of the same name with the old one, and loses messages.
            return "does not answer" not in (await sender.subscriptions[0].problem() or "does not answer")

        await eventually(was_cancelled, "the consumer has noticed that its queue is gone")
        await prepare_topology(rabbit, [topology.deliveries(Channel.TELEGRAM)])
        await eventually(consumes, "the queue that was declared anew has its consumer")
        await hand.request(another := request())
        assert [result.outcome for result in await hand.results(2)] == [Outcome.SENT] * 2
    assert another in provider.calls


async def test_an_attempt_that_comes_again_parks_its_next_one_once(rabbit: RabbitSettings, hand: Hand) -> None:
    async def refuse(_: DeliveryRequested) -> str:
        raise TemporaryFailure("no")

    provider, wanted = FakeProvider(refuse), request()
    async with running_sender(rabbit, provider, first_delay=timedelta(minutes=5)):
        await hand.request(wanted)

        async def is_parked() -> bool:
            return await hand.depth("notifications.telegram.retry.300000") == 1

        await eventually(is_parked, "its next attempt waits")
        # As after an ack that was lost.
        await hand.request(wanted)
        await hand.request(request())
        await hand.results(2)
    assert [call.delivery_id for call in provider.calls].count(wanted.delivery_id) == 1
    assert await hand.depth("notifications.telegram.retry.300000") == 2
    assert await hand.depth("notifications.telegram") == 0
