"""Deliveries of test keys, which are simulated whatever provider the sender has."""

from datetime import timedelta

import pytest
from notify_common.contracts.messages import DeliveryRequested, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.circuit_breaker import LONGEST_OPEN
from notify_common.sending.errors import Throttled
from notify_common.sending.provider_limits import ProviderLimits
from support.amqp import Hand
from support.fakes import FakeProvider
from support.services import delivery_requested as request
from support.services import eventually, running_sender


def simulated(recipient: str | None = "123456789") -> DeliveryRequested:
    return request(test=True, recipient=recipient)


@pytest.mark.parametrize("recipient", ["123456789", None, "@simulator_delivered"])
async def test_test_delivery_never_reaches_the_provider(
    rabbit: RabbitSettings, hand: Hand, recipient: str | None
) -> None:
    provider, simulator = FakeProvider(), FakeProvider()
    async with running_sender(rabbit, provider, simulator=simulator, limits=ProviderLimits(concurrency=10)):
        await hand.request(simulated(recipient))
        [result] = await hand.results(1)
    assert result.outcome is Outcome.SENT
    assert provider.calls == []
    assert len(simulator.calls) == (recipient != "@simulator_delivered")


@pytest.mark.parametrize(
    ("recipient", "outcomes"),
    [
        ("@simulator_permanent", [Outcome.FAILED]),
        ("@simulator_temporary", [Outcome.RETRYING, Outcome.FAILED]),
        ("@simulator_throttled", [Outcome.THROTTLED, Outcome.SENT]),
    ],
)
async def test_retried_test_delivery_remains_one(
    rabbit: RabbitSettings, hand: Hand, recipient: str, outcomes: list[Outcome]
) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider, max_attempts=2, limits=ProviderLimits(concurrency=10)):
        await hand.request(simulated(recipient))
        results = [(await hand.results(1))[0] for _ in outcomes]
    assert [result.outcome for result in results] == outcomes
    assert provider.calls == []


async def test_open_circuit_does_not_delay_test_deliveries_which_do_not_close_it(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    async def throttle(_: DeliveryRequested) -> str:
        raise Throttled("http_503", retry_after=LONGEST_OPEN)  # much longer than this test takes

    provider = FakeProvider(throttle)
    tested, real = [simulated() for _ in range(5)], [request(recipient="1") for _ in range(2)]
    # Instead of waiting for the next trial, a call is postponed at once.
    limits = ProviderLimits(concurrency=1, admission_timeout=timedelta(seconds=1))
    async with running_sender(rabbit, provider, limits=limits) as sender:

        async def is_postponed() -> bool:
            return sender.registry.get_sample_value("notify_attempts_postponed_total", {"channel": "telegram"}) == 1

        await hand.request(real[0])
        await hand.results(1)
        for each in tested:
            await hand.request(each)
        results = await hand.results(len(tested))
        await hand.request(real[1])
        await eventually(is_postponed, "the circuit is still open, so the call is postponed")
    assert {result.delivery_id for result in results} == {each.delivery_id for each in tested}
    assert {result.outcome for result in results} == {Outcome.SENT}
    assert provider.calls == real[:1]


async def test_test_deliveries_do_not_wait_for_the_rate_limit_and_use_none_of_it(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    provider = FakeProvider()
    limits = ProviderLimits(concurrency=1, rate=0.001)
    async with running_sender(rabbit, provider, limits=limits):
        for _ in range(3):
            await hand.request(simulated())
        results = await hand.results(3)
        await hand.request(request(recipient="1"))
        results += await hand.results(1)
    assert {result.outcome for result in results} == {Outcome.SENT}
    assert len(provider.calls) == 1
