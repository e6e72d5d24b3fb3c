"""Delivery outcomes while a provider throttles, fails, hangs or is down."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryResult, ErrorClass, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_common.sending.provider_limits import ProviderLimits
from support.amqp import Hand
from support.bot_api_peer import BotApiPeer
from support.conformance import Behaviour
from support.fakes import FakeProvider
from support.services import delivery_requested as request
from support.services import eventually, running_sender
from support.smtp_peer import SmtpPeer


@pytest.fixture
async def smtp(tmp_path: Path) -> AsyncIterator[SmtpPeer]:
    peer = SmtpPeer(tmp_path)
    await peer.open()
    yield peer
    await peer.close()


LIMITS = ProviderLimits(concurrency=10)


async def test_mail_server_replies_lead_to_the_documented_outcomes(
    rabbit: RabbitSettings, hand: Hand, smtp: SmtpPeer
) -> None:
    first, second = [request(channel=Channel.EMAIL, recipient="a@example.org") for _ in range(2)]
    async with running_sender(rabbit, smtp.provider(), channel=Channel.EMAIL, max_attempts=3, limits=LIMITS):
        smtp.script = [Behaviour.THROTTLE, Behaviour.TEMPORARY, Behaviour.PERMANENT]
        await hand.request(first)
        results = await hand.results(3)
        smtp.script = [Behaviour.CUT_IN_DATA, Behaviour.BREAK, Behaviour.ACCEPT]
        await hand.request(second)
        results += await hand.results(3)
    outcomes_and_errors = [
        (result.outcome, result.error_class, result.error_code, result.failures) for result in results
    ]
    assert outcomes_and_errors == [
        (Outcome.THROTTLED, ErrorClass.THROTTLED, "smtp_421", 0),
        (Outcome.RETRYING, ErrorClass.TEMPORARY, "smtp_450", 1),
        (Outcome.FAILED, ErrorClass.PERMANENT, "smtp_550", 2),
        (Outcome.RETRYING, ErrorClass.UNKNOWN, "connection_lost", 1),
        (Outcome.RETRYING, ErrorClass.UNKNOWN, "connection_lost", 2),
        (Outcome.SENT, None, None, 2),
    ]


async def test_deliveries_wait_while_the_mail_server_is_down(
    rabbit: RabbitSettings, hand: Hand, smtp: SmtpPeer
) -> None:
    requested = [request(channel=Channel.EMAIL, recipient="a@example.org") for _ in range(50)]
    provider = smtp.provider()
    await smtp.close()
    async with running_sender(rabbit, provider, channel=Channel.EMAIL, concurrency=20, limits=LIMITS):
        for each in requested:
            await hand.request(each)
        # At least two calls fail: the first, and then one that was already in flight or a trial call. The open circuit
        # holds back the rest.
        unreachable = await hand.results(2)
        assert {result.error_class for result in unreachable} == {ErrorClass.UNREACHABLE}
        await smtp.open()
        results = unreachable
        while sum(result.outcome is Outcome.SENT for result in results) < len(requested):
            results += await hand.results(1)
    assert {result.failures for result in results} == {0}
    assert len(smtp.messages) == len(requested)
    assert len(results) < 2 * len(requested)


async def test_throttling_by_the_bot_api_fails_no_deliveries(rabbit: RabbitSettings, hand: Hand) -> None:
    peer = BotApiPeer()
    await peer.open()
    requested = [request(recipient=str(1 + number)) for number in range(20)]
    async with running_sender(rabbit, peer.provider(), limits=LIMITS):
        peer.behaviour = Behaviour.THROTTLE
        for each in requested:
            await hand.request(each)
        results = await hand.results(1)
        throttled = results[0]
        assert (throttled.outcome, throttled.failures) == (Outcome.THROTTLED, 0)
        assert throttled.next_attempt_at is not None
        assert throttled.next_attempt_at - throttled.finished_at == timedelta(seconds=1)
        peer.behaviour = Behaviour.ACCEPT
        while sum(result.outcome is Outcome.SENT for result in results) < len(requested):
            results += await hand.results(1)
    await peer.close()
    assert {result.failures for result in results} == {0}
    assert len(peer.requests) == len(requested)


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
async def test_simulated_recipient_determines_the_outcome_without_a_provider_call(
    rabbit: RabbitSettings, hand: Hand, recipient: str, outcomes: list[Outcome]
) -> None:
    provider = FakeProvider()
    async with running_sender(rabbit, provider, max_attempts=2, provider_timeout=0.2, limits=LIMITS):
        await hand.request(request(recipient=recipient))
        results = [(await hand.results(1))[0] for _ in outcomes]
    assert [result.outcome for result in results] == outcomes
    assert provider.calls == []


async def test_delivery_that_waits_too_long_for_a_slot_returns_to_the_broker_without_an_attempt(
    rabbit: RabbitSettings, hand: Hand, smtp: SmtpPeer
) -> None:
    requested = [request(channel=Channel.EMAIL, recipient="a@example.org") for _ in range(3)]
    wait = timedelta(seconds=0.2)
    one_at_a_time = ProviderLimits(concurrency=1, admission_timeout=wait, retry_after=wait)
    async with running_sender(
        rabbit, smtp.provider(), channel=Channel.EMAIL, limits=one_at_a_time, provider_timeout=60
    ):
        smtp.script = [Behaviour.HANG]
        await hand.request(requested[0])
        await smtp.asked.wait()
        for each in requested[1:]:
            await hand.request(each)

        async def all_taken() -> bool:
            return await hand.depth("notifications.email") == 0 and len(smtp.messages) == 0

        await eventually(all_taken, "the sender has taken all messages")
        await smtp.close()
        await smtp.open()
        smtp.behaviour = Behaviour.ACCEPT
        results: list[DeliveryResult] = []
        while sum(result.outcome is Outcome.SENT for result in results) < len(requested):
            results += await hand.results(1)
    others = [result for result in results if result.delivery_id != requested[0].delivery_id]
    assert {(result.outcome, result.attempt, result.failures) for result in others} == {(Outcome.SENT, 1, 0)}
    assert len(smtp.messages) == len(requested)


async def test_delivery_expires_while_its_provider_is_unavailable(
    rabbit: RabbitSettings, hand: Hand, smtp: SmtpPeer
) -> None:
    provider = smtp.provider()
    await smtp.close()
    expires_at = utc_now() + timedelta(seconds=1)
    requested = [request(channel=Channel.EMAIL, recipient="a@example.org", expires_at=expires_at) for _ in range(20)]
    async with running_sender(rabbit, provider, channel=Channel.EMAIL, limits=LIMITS):
        for each in requested:
            await hand.request(each)
        results: list[DeliveryResult] = []
        while sum(result.outcome is Outcome.EXPIRED for result in results) < len(requested):
            results += await hand.results(1)
    assert all(result.started_at >= expires_at for result in results if result.outcome is Outcome.EXPIRED)
