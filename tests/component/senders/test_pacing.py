"""Rate limits keep the order of arrival and waste no time, and a throttled chat delays no other chat."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise

import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content, DeliveryRequested, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_common.sending.errors import TemporaryFailure, Throttled
from notify_common.sending.provider_limits import ProviderLimits
from notify_telegram_sender.limits import telegram_limits
from support.amqp import Hand
from support.bot_api_peer import BotApiPeer
from support.conformance import Behaviour
from support.fakes import FakeProvider
from support.services import delivery_requested as request
from support.services import running_sender

QUEUE, LONGER_QUEUE = "notifications.telegram.retry.60000", "notifications.telegram.retry.120000"
JITTER = 0.15  # seconds by which a busy machine may delay a call


class TimedProvider(FakeProvider):
    """A provider that records when each call was made, on the event loop's clock."""

    def __init__(self) -> None:
        self.called_at: dict[str | None, list[float]] = defaultdict(list)

        async def record(requested: DeliveryRequested) -> str:
            self.called_at[requested.recipient].append(asyncio.get_running_loop().time())
            return "sent"

        super().__init__(record)


@pytest.fixture
async def bot_api() -> AsyncIterator[BotApiPeer]:
    peer = BotApiPeer()
    await peer.open()
    yield peer
    await peer.close()


async def test_burst_is_sent_in_order_at_the_full_rate(rabbit: RabbitSettings, hand: Hand) -> None:
    provider, rate = TimedProvider(), 30.0
    expires_at = utc_now() + timedelta(minutes=5)
    burst = [request(channel=Channel.EMAIL, recipient="a@example.org", expires_at=expires_at) for _ in range(240)]
    limits = ProviderLimits(concurrency=240, rate=rate)
    async with running_sender(rabbit, provider, channel=Channel.EMAIL):
        pass  # it declares the queue, in which the whole burst waits before it is sent
    for each in burst:
        await hand.request(each)
    async with running_sender(rabbit, provider, channel=Channel.EMAIL, concurrency=240, limits=limits):
        results = await hand.results(len(burst))
    assert {(result.outcome, result.attempt) for result in results} == {(Outcome.SENT, 1)}
    assert [call.delivery_id for call in provider.calls] == [each.delivery_id for each in burst]
    times = provider.called_at["a@example.org"]
    assert times[-1] - times[0] >= (len(burst) - 1) / rate - JITTER


async def test_message_with_a_distant_turn_returns_in_time_for_it_and_in_order(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    provider, rate = TimedProvider(), 5.0
    burst = [request(recipient="busy chat") for _ in range(45)]
    others = [request(recipient=f"chat {number}") for number in range(5)]
    limits = ProviderLimits(concurrency=10, rate=100, rate_per_recipient=rate)
    async with running_sender(rabbit, provider, limits=limits):
        for each in (*burst, *others):
            await hand.request(each)
        results = await hand.results(len(burst) + len(others))
    assert {(result.outcome, result.attempt) for result in results} == {(Outcome.SENT, 1)}
    calls = [call.delivery_id for call in provider.calls if call.recipient == "busy chat"]
    assert calls == [each.delivery_id for each in burst]
    times = provider.called_at["busy chat"]
    assert all(later - earlier >= 1 / rate - JITTER for earlier, later in pairwise(times))
    # The other chats arrived last, and had to wait for none of the distant turns.
    assert max(provider.called_at[each.recipient][0] for each in others) < times[len(burst) // 2]


async def test_message_carries_its_reservation_and_no_outage_through_the_retry_queue(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    limits = ProviderLimits(concurrency=10, rate_per_recipient=0.01)
    waited, lifetime = timedelta(hours=1), timedelta(seconds=70)
    async with running_sender(rabbit, FakeProvider(), first_delay=timedelta(seconds=60), limits=limits):
        await hand.request(request(recipient="busy chat"))
        await hand.results(1)
        now = utc_now()
        await hand.request(request(recipient="busy chat", waiting_since=now - waited))
        paced = DeliveryRequested.model_validate_json((await hand.next_message(QUEUE)).body)
        await hand.request(request(recipient="busy chat", expires_at=now + lifetime))
        expiring = DeliveryRequested.model_validate_json((await hand.next_message(QUEUE)).body)
        await hand.request(request(recipient="busy chat"))
        following = DeliveryRequested.model_validate_json((await hand.next_message(LONGER_QUEUE)).body)
    assert paced.not_before is not None
    assert paced.waiting_since is not None
    assert following.not_before is not None
    assert (paced.reserved, following.reserved) == (True, True)
    # The wait for a turn does not count as waiting for an unavailable provider.
    assert paced.not_before - paced.waiting_since == pytest.approx(waited, abs=timedelta(seconds=5))
    # A delivery that expires before its turn takes none.
    assert expiring.not_before == expiring.expires_at
    turn_after = following.not_before - paced.not_before
    assert turn_after == pytest.approx(timedelta(seconds=100), abs=timedelta(seconds=5))


async def test_throttled_chat_delays_no_other_chat(rabbit: RabbitSettings, hand: Hand, bot_api: BotApiPeer) -> None:
    bot_api.throttled["1"] = 3600
    async with running_sender(rabbit, bot_api.provider(), limits=ProviderLimits(concurrency=10)):
        await hand.request(request(recipient="1"))
        [throttled] = await hand.results(1)
        assert throttled.outcome is Outcome.THROTTLED
        for number in range(20):
            await hand.request(request(recipient="1"))
            await hand.request(request(recipient=str(2 + number)))
        results = await hand.results(20)
    assert {(result.outcome, result.attempt) for result in results} == {(Outcome.SENT, 1)}
    # The chat's other messages wait until it is no longer throttled.
    assert bot_api.refused == ["1"]


async def test_deliveries_whose_turns_come_after_their_expiry_expire_during_an_outage(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    async def answer(_: DeliveryRequested) -> str:
        raise Throttled("429", retry_after=timedelta(minutes=1))

    limits = ProviderLimits(concurrency=10, rate_per_recipient=0.01)
    async with running_sender(rabbit, FakeProvider(answer), limits=limits, first_delay=timedelta(seconds=1)):
        await hand.request(request(recipient="first"))
        assert [each.outcome for each in await hand.results(1)] == [Outcome.THROTTLED]
        now = utc_now()
        expiries = [now + timedelta(seconds=1.5 + number / 10) for number in range(20)]
        # The circuit is open for half a minute, so these are postponed until they expire, some of them several times.
        waiting = [
            request(recipient=f"chat {number}", not_before=expires_at, expires_at=expires_at, reserved=True)
            for number, expires_at in enumerate(expiries)
        ]
        for each in waiting:
            await hand.request(each)
        results = await hand.results(len(waiting))
    assert {(result.delivery_id, result.outcome) for result in results} == {
        (each.delivery_id, Outcome.EXPIRED) for each in waiting
    }


@pytest.mark.parametrize(
    "failure",
    [Throttled("429", retry_after=timedelta(hours=1)), TemporaryFailure("busy")],
    ids=["throttled", "temporary failure"],
)
async def test_delivery_expires_on_time_while_it_waits_for_a_retry(
    rabbit: RabbitSettings, hand: Hand, failure: Exception
) -> None:
    async def refuse(_: DeliveryRequested) -> str:
        raise failure

    async with running_sender(
        rabbit, FakeProvider(refuse), max_attempts=9, first_delay=timedelta(seconds=2.5), limits=ProviderLimits(10)
    ):
        expires_at = utc_now() + timedelta(seconds=1)
        # Without the expiry, a temporary failure would wait for the fifth delay, which is 40 s.
        await hand.request(request(expires_at=expires_at, attempt=5, failures=4))
        results = await hand.results(2)
    assert [result.outcome for result in results] == [results[0].outcome, Outcome.EXPIRED]
    assert results[0].next_attempt_at == expires_at
    assert results[1].started_at >= expires_at


async def test_each_part_of_a_long_message_counts_towards_the_rate(
    rabbit: RabbitSettings, hand: Hand, bot_api: BotApiPeer
) -> None:
    rate, parts = 20, 4
    long = Content(message="x" * 4096 * parts)
    burst = [request(recipient=f"long {number}", tenant=str(number % 3), content=long) for number in range(12)]
    burst += [request(recipient=f"short {number}") for number in range(60)]
    settings = bot_api.settings(telegram_rate=rate)
    async with running_sender(rabbit, bot_api.provider(), provider_timeout=60, limits=telegram_limits(settings)):
        for each in burst:
            await hand.request(each)
        results = await hand.results(len(burst))
    assert {(result.outcome, result.attempt) for result in results} == {(Outcome.SENT, 1)}
    times = [at for ats in bot_api.sent_at.values() for at in ats]
    assert len(times) == 12 * parts + 60
    assert max(times) - min(times) >= (len(times) - 1) / rate - JITTER


async def test_each_part_of_a_long_message_counts_towards_the_rate_of_its_chat(
    rabbit: RabbitSettings, hand: Hand, bot_api: BotApiPeer
) -> None:
    limits = telegram_limits(bot_api.settings())
    async with running_sender(rabbit, bot_api.provider(), provider_timeout=60, limits=limits):
        await hand.request(request(recipient="chat", content=Content(message="x" * 4097)))
        await hand.request(request(recipient="chat"))
        await hand.request(request(recipient="chat"))
        await hand.results(3)
    assert len(bot_api.sent_at["chat"]) == 4
    assert all(later - earlier >= 1 - JITTER for earlier, later in pairwise(bot_api.sent_at["chat"]))


async def test_parts_that_are_not_sent_do_not_count_towards_the_rate(
    rabbit: RabbitSettings, hand: Hand, bot_api: BotApiPeer
) -> None:
    bot_api.behaviour = Behaviour.PERMANENT
    rate = 10
    limits = telegram_limits(bot_api.settings(telegram_rate=rate))
    burst = [request(recipient=f"{number}", content=Content(message="x" * 4096 * 16)) for number in range(30)]
    async with running_sender(rabbit, bot_api.provider(), provider_timeout=60, limits=limits):
        for each in burst:
            await hand.request(each)
        results = await hand.results(len(burst))
    assert {result.outcome for result in results} == {Outcome.FAILED}
    times = sorted(result.started_at for result in results)
    assert (times[-1] - times[0]).total_seconds() < 4 * len(burst) / rate  # 48 s if all parts counted
