import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from notify_common.contracts.messages import DeliveryResult, ErrorClass, Outcome
from notify_common.sending.attempt import Decision
from notify_common.sending.circuit_breaker import (
    LONGEST_CLOSED,
    LONGEST_PACE,
    CircuitBreaker,
    CircuitBreakers,
    ProviderLimits,
    RateLimiter,
)
from notify_common.sending.errors import ProviderFailure, Throttled, Unreachable

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def ended(error_class: ErrorClass | None = None, failure: ProviderFailure | None = None) -> Decision:
    result = DeliveryResult(
        delivery_id=uuid4(),
        round=1,
        attempt=1,
        failures=0,
        outcome=Outcome.SENT if error_class is None else Outcome.RETRYING,
        error_class=error_class,
        started_at=NOW,
        finished_at=NOW + timedelta(seconds=1),
    )
    return Decision(result, failure=failure)


class Calls:
    """Calls through a gate, of a provider that does as it is told."""

    def __init__(self, limits: ProviderLimits) -> None:
        self.gate = CircuitBreaker("a provider", limits)
        self.error_class: ErrorClass | None = None
        self.made = 0
        self.under_way = 0
        self.most_at_once = 0

    async def call(self, patience: float = 60, recipient: str = "") -> bool:
        async with self.gate.admitted(recipient, patience) as admission:
            if admission is None:
                return False
            self.made += 1
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
            await asyncio.sleep(0)
            self.under_way -= 1
            admission.saw(ended(self.error_class))
            return True


async def test_no_more_are_under_way_than_the_provider_takes() -> None:
    calls = Calls(ProviderLimits(concurrency=3))
    assert all(await asyncio.gather(*(calls.call() for _ in range(20))))
    assert (calls.made, calls.most_at_once) == (20, 3)


@pytest.mark.parametrize("error_class", [ErrorClass.UNREACHABLE, ErrorClass.THROTTLED])
async def test_while_the_provider_is_down_one_asks_at_a_time(error_class: ErrorClass) -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    calls.error_class = error_class
    await calls.call()
    waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert calls.made == 2
    # It is back: the next probe opens the gate for all.
    calls.error_class = None
    assert all(await asyncio.gather(*waiting))
    assert (calls.made, calls.most_at_once > 1) == (21, True)


async def test_other_errors_close_nothing() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    for error_class in (ErrorClass.TEMPORARY, ErrorClass.PERMANENT, ErrorClass.TIMEOUT, ErrorClass.UNKNOWN):
        calls.error_class = error_class
        assert await calls.call(patience=0.01)


async def test_who_waits_too_long_is_let_go_and_the_next_one_may_ask() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    assert not await calls.call(patience=0.01)
    calls.error_class = None
    assert await calls.call()


async def test_a_probe_that_is_cut_off_leaves_the_place_to_another() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    cut_off = asyncio.create_task(calls.call())
    await asyncio.sleep(0)
    calls.error_class = None
    following = asyncio.create_task(calls.call())
    cut_off.cancel()
    assert await following


async def test_all_who_wait_go_on_as_soon_as_any_call_finds_the_provider_well() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    async with calls.gate.admitted("", 60) as under_way:
        calls.error_class = ErrorClass.UNREACHABLE
        for _ in range(4):
            await calls.call()  # each a probe, after an ever longer wait
        calls.error_class = None
        waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
        await asyncio.sleep(0)
        before = asyncio.get_running_loop().time()
        assert under_way is not None
        under_way.saw(ended())
        assert all(await asyncio.gather(*waiting))
    assert asyncio.get_running_loop().time() - before < 0.5  # not after the wait of the next probe


async def test_a_probe_without_an_answer_opens_nothing() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    for error_class in (ErrorClass.UNREACHABLE, ErrorClass.TIMEOUT):
        calls.error_class = error_class
        await calls.call()
        assert calls.gate.closed


async def test_the_last_attempt_goes_through_a_closed_gate() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    async with calls.gate.admitted("", 0.01, even_closed=True) as admission:
        assert admission is not None


async def test_who_waits_when_the_end_comes_is_sent_away() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    waiting = [asyncio.create_task(calls.call()) for _ in range(3)]
    await asyncio.sleep(0)
    calls.gate.stop()
    assert await asyncio.gather(*waiting) == [False] * 3
    assert not await calls.call()


async def test_calls_keep_their_pace_after_an_outage() -> None:
    calls = Calls(ProviderLimits(concurrency=100, rate=50))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    calls.error_class = None
    waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    began, made = asyncio.get_running_loop().time(), calls.made
    await asyncio.gather(*waiting)
    assert asyncio.get_running_loop().time() - began >= (calls.made - made - 1) / 50


def test_calls_with_one_key_are_spaced_and_others_do_not_wait() -> None:
    pacer = RateLimiter(0.5)
    assert [pacer.reserve("a", 10.0, 60) for _ in range(3)] == [0, 0.5, 1.0]
    assert pacer.reserve("b", 10.0, 60) == 0
    assert pacer.reserve("a", 20.0, 60) == 0


def test_a_time_that_is_too_far_off_is_not_taken() -> None:
    pacer = RateLimiter(LONGEST_PACE + 1)
    assert pacer.reserve("a", 0.0, 60) == 0
    for _ in range(2):
        with pytest.raises(TimeoutError):
            pacer.reserve("a", 0.0, 60)
    assert pacer.reserve("a", 2.0, 60) == LONGEST_PACE - 1


async def test_nobody_asks_again_before_the_time_that_the_provider_named() -> None:
    for asked in (timedelta(seconds=20), timedelta(hours=1)):
        gate = CircuitBreaker("a provider", ProviderLimits(concurrency=100))
        began = asyncio.get_running_loop().time()
        async with gate.admitted("", 60) as admission:
            assert admission is not None
            admission.saw(ended(ErrorClass.THROTTLED, Throttled("429", retry_after=asked)))
        assert gate.closed_until is not None
        assert gate.closed_until >= began + min(asked, LONGEST_CLOSED).total_seconds()


async def test_a_provider_that_is_down_closes_the_way_to_no_other() -> None:
    limits = ProviderLimits(concurrency=1, provider_of=lambda recipient: recipient.partition("/")[0])
    gates = CircuitBreakers("a provider", limits)
    async with gates.of("down/1").admitted("", 1) as admission:
        assert admission is not None
        admission.saw(ended(ErrorClass.UNREACHABLE))
    assert gates.of("down/2").closed
    assert not gates.of("well/1").closed
    gates.stop()
    for recipient in ("well/2", "new/1"):
        async with gates.of(recipient).admitted("", 1) as admission:
            assert admission is None


async def test_gates_that_nobody_needs_are_forgotten() -> None:
    limits = ProviderLimits(concurrency=1, provider_of=lambda recipient: recipient)
    gates = CircuitBreakers("a provider", limits, remembered=3)
    closed, inside, idle = gates.of("closed"), gates.of("inside"), gates.of("idle")
    async with closed.admitted("", 1) as admission:
        assert admission is not None
        admission.saw(ended(ErrorClass.UNREACHABLE))
    async with inside.admitted("", 1):
        gates.of("one more than are remembered")
        assert gates.of("closed") is closed
        assert gates.of("inside") is inside
        assert gates.of("idle") is not idle


def test_a_time_that_nobody_will_wait_for_is_not_taken() -> None:
    pacer = RateLimiter(0.5)
    assert [pacer.reserve("a", 0.0, 1) for _ in range(3)] == [0, 0.5, 1.0]
    with pytest.raises(TimeoutError):
        pacer.reserve("a", 0.0, 1)
    assert pacer.reserve("a", 1.0, 1) == 0.5


async def test_who_would_not_be_let_in_in_time_does_not_wait() -> None:
    gate = CircuitBreaker("a provider", ProviderLimits(concurrency=1))
    async with gate.admitted("", 1) as admission:
        assert admission is not None
        admission.saw(ended(ErrorClass.THROTTLED, Throttled("429", retry_after=timedelta(seconds=20))))
    waiting = asyncio.ensure_future(gate.admitted("", 10).__aenter__())
    await asyncio.sleep(0)
    assert waiting.done()
    assert waiting.result() is None


async def test_what_is_said_of_one_recipient_closes_the_way_to_no_other() -> None:
    gate = CircuitBreaker("a provider", ProviderLimits(concurrency=1))
    async with gate.admitted("", 1) as admission:
        assert admission is not None
        admission.saw(ended(ErrorClass.UNREACHABLE, Unreachable("http_401", of_recipient=True)))
    assert not gate.closed
