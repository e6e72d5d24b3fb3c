"""A sender against RabbitMQ, with a fake provider."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from notify_common import topology
from notify_common.channels import Channel
from notify_common.messages import Content, DeliveryRequested, DeliveryResult, ErrorClass, Outcome
from notify_common.rabbitmq import RabbitSettings, prepare_topology
from notify_common.sending.provider import PermanentFailure, TemporaryFailure, Throttled
from notify_common.sending.provider_gate import ProviderLimits
from support.amqp import Hand
from support.bot_api_peer import BotApiPeer
from support.conformance import Behaviour
from support.fakes import CuttableNetwork, FakeProvider
from support.services import eventually, running_sender
from support.smtp_peer import SmtpPeer


def request(**change: object) -> DeliveryRequested:
    return DeliveryRequested.model_validate(
        {
            "delivery_id": uuid4(),
            "notification_id": uuid4(),
            "user_id": 1,
            "channel": Channel.TELEGRAM,
            "content": Content(message="hello"),
            **change,
        }
    )


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
    monkeypatch.setattr("notify_common.rabbitmq.HEARTBEAT", 1)  # noticed after about three of them
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
            return await sender.consumer.problem() is None

        await eventually(ready, "it consumes")
        await hand.channel.queue_delete(sender.consumer.queue)

        async def not_ready() -> bool:
            return await sender.consumer.problem() is not None

        await eventually(not_ready, "a consumer without its queue is not ready, although it is connected")


async def test_a_consumer_whose_queue_comes_back_consumes_again(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider) as sender:
        await hand.request(request())
        await provider.called.wait()
        await hand.channel.queue_delete("notifications.telegram")

        async def consumes() -> bool:
            return await sender.consumer.problem() is None

        async def was_cancelled() -> bool:
            # Not before: RabbitMQ 3.10 confuses a new queue of the same name with the old one, and loses messages.
            return "does not answer" not in (await sender.consumer.problem() or "does not answer")

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


@pytest.fixture
async def smtp(tmp_path: Path) -> AsyncIterator[SmtpPeer]:
    peer = SmtpPeer(tmp_path)
    await peer.open()
    yield peer
    await peer.close()


LIMITS = ProviderLimits(concurrency=10)


async def test_each_answer_of_a_mail_server_is_what_the_documentation_says(
    rabbit: RabbitSettings, hand: Hand, smtp: SmtpPeer
) -> None:
    wanted = request(channel=Channel.EMAIL, recipient="a@example.org")
    async with running_sender(rabbit, smtp.provider(), channel=Channel.EMAIL, max_attempts=3, limits=LIMITS):
        smtp.script = [Behaviour.THROTTLE, Behaviour.TEMPORARY, Behaviour.BREAK, Behaviour.PERMANENT]
        await hand.request(wanted)
        results = await hand.results(4)
    told = [(result.outcome, result.error_class, result.error_code, result.failures) for result in results]
    assert told == [
        (Outcome.THROTTLED, ErrorClass.THROTTLED, "smtp_421", 0),
        (Outcome.RETRYING, ErrorClass.TEMPORARY, "smtp_450", 1),
        (Outcome.RETRYING, ErrorClass.UNKNOWN, "connection_lost", 2),
        (Outcome.FAILED, ErrorClass.PERMANENT, "smtp_550", 3),
    ]


async def test_while_a_mail_server_is_down_nothing_fails_and_the_queue_waits(
    rabbit: RabbitSettings, hand: Hand, smtp: SmtpPeer
) -> None:
    wanted = [request(channel=Channel.EMAIL, recipient="a@example.org") for _ in range(50)]
    provider = smtp.provider()
    await smtp.close()
    async with running_sender(rabbit, provider, channel=Channel.EMAIL, concurrency=20, limits=LIMITS):
        for each in wanted:
            await hand.request(each)
        # As many as were under way when the first one found out, and a probe: the others are not spent on it.
        unreachable = await hand.results(2)
        assert {result.error_class for result in unreachable} == {ErrorClass.UNREACHABLE}
        await smtp.open()
        results = unreachable
        while sum(result.outcome is Outcome.SENT for result in results) < len(wanted):
            results += await hand.results(1)
    assert {result.failures for result in results} == {0}
    assert len(smtp.messages) == len(wanted)
    assert len(results) < 2 * len(wanted)


async def test_a_bot_that_is_throttled_fails_nothing_and_recovers(rabbit: RabbitSettings, hand: Hand) -> None:
    peer = BotApiPeer()
    await peer.open()
    wanted = [request(recipient=str(1 + number)) for number in range(20)]
    async with running_sender(rabbit, peer.provider(), limits=LIMITS):
        peer.behaviour = Behaviour.THROTTLE
        for each in wanted:
            await hand.request(each)
        results = await hand.results(1)
        throttled = results[0]
        assert (throttled.outcome, throttled.failures) == (Outcome.THROTTLED, 0)
        assert throttled.next_attempt_at is not None
        assert throttled.next_attempt_at - throttled.finished_at == timedelta(seconds=1)
        peer.behaviour = Behaviour.ACCEPT
        while sum(result.outcome is Outcome.SENT for result in results) < len(wanted):
            results += await hand.results(1)
    await peer.close()
    assert {result.failures for result in results} == {0}
    assert len(peer.requests) == len(wanted)


@pytest.mark.parametrize(
    ("recipient", "outcomes"),
    [
        ("@simulator_delivered", [Outcome.SENT]),
        ("@simulator_permanent", [Outcome.FAILED]),
        ("@simulator_temporary", [Outcome.RETRYING, Outcome.FAILED]),
        ("@simulator_throttled", [Outcome.THROTTLED, Outcome.SENT]),
        ("@simulator_timeout", [Outcome.RETRYING, Outcome.FAILED]),
    ],
)
async def test_a_test_recipient_ends_as_its_name_says_and_no_provider_is_called(
    rabbit: RabbitSettings, hand: Hand, recipient: str, outcomes: list[Outcome]
) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider, max_attempts=2, provider_timeout=0.2, limits=LIMITS):
        await hand.request(request(recipient=recipient))
        results = [(await hand.results(1))[0] for _ in outcomes]
    assert [result.outcome for result in results] == outcomes
    assert provider.calls == []


async def test_who_may_not_be_sent_for_too_long_goes_back_to_the_broker_unspent(
    rabbit: RabbitSettings, hand: Hand, smtp: SmtpPeer
) -> None:
    wanted = [request(channel=Channel.EMAIL, recipient="a@example.org") for _ in range(3)]
    wait = timedelta(seconds=0.2)
    one_at_a_time = ProviderLimits(concurrency=1, patience=wait, parked=wait)
    async with running_sender(
        rabbit, smtp.provider(), channel=Channel.EMAIL, limits=one_at_a_time, provider_timeout=60
    ):
        smtp.script = [Behaviour.HANG]
        await hand.request(wanted[0])
        await smtp.asked.wait()
        for each in wanted[1:]:
            await hand.request(each)

        async def both_wait_in_the_broker() -> bool:
            return await hand.depth("notifications.email") == 0 and len(smtp.messages) == 0

        await eventually(both_wait_in_the_broker, "the messages are taken")
        await smtp.close()
        await smtp.open()
        smtp.behaviour = Behaviour.ACCEPT
        results: list[DeliveryResult] = []
        while sum(result.outcome is Outcome.SENT for result in results) < len(wanted):
            results += await hand.results(1)
    others = [result for result in results if result.delivery_id != wanted[0].delivery_id]
    assert {(result.outcome, result.attempt, result.failures) for result in others} == {(Outcome.SENT, 1, 0)}
    assert len(smtp.messages) == len(wanted)
