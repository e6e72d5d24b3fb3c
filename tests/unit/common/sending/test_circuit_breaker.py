import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from notify_common.contracts.messages import DeliveryResult, ErrorClass, Outcome
from notify_common.sending.attempt import Decision
from notify_common.sending.circuit_breaker import LONGEST_OPEN, CircuitBreaker, CircuitBreakers, ProviderLimits
from notify_common.sending.errors import ProviderFailure, Throttled, Unreachable
from notify_common.sending.rate_limiter import LONGEST_RESERVATION, RateLimiter

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def decision(error_class: ErrorClass | None = None, failure: ProviderFailure | None = None) -> Decision:
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
    """Calls through a circuit breaker to a provider that always responds with `error_class`."""

    def __init__(self, limits: ProviderLimits) -> None:
        self.breaker = CircuitBreaker("a provider", limits)
        self.error_class: ErrorClass | None = None
        self.admitted = 0
        self.under_way = 0
        self.most_at_once = 0

    async def call(self, timeout: float = 60, recipient: str = "") -> bool:
        async with self.breaker.admission(recipient, timeout) as admission:
            if admission is None:
                return False
            self.admitted += 1
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
            await asyncio.sleep(0)
            self.under_way -= 1
            admission.record(decision(self.error_class))
            return True


async def test_concurrent_calls_are_limited() -> None:
    calls = Calls(ProviderLimits(concurrency=3))
    assert all(await asyncio.gather(*(calls.call() for _ in range(20))))
    assert (calls.admitted, calls.most_at_once) == (20, 3)


@pytest.mark.parametrize("error_class", [ErrorClass.UNREACHABLE, ErrorClass.THROTTLED])
async def test_open_circuit_admits_one_trial_call_at_a_time(error_class: ErrorClass) -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    calls.error_class = error_class
    await calls.call()
    waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert calls.admitted == 2
    # The provider has recovered, so the next trial call closes the circuit for all callers.
    calls.error_class = None
    assert all(await asyncio.gather(*waiting))
    assert (calls.admitted, calls.most_at_once > 1) == (21, True)


async def test_other_errors_do_not_open_the_circuit() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    for error_class in (ErrorClass.TEMPORARY, ErrorClass.PERMANENT, ErrorClass.TIMEOUT, ErrorClass.UNKNOWN):
        calls.error_class = error_class
        assert await calls.call(timeout=0.01)


async def test_caller_that_times_out_leaves_the_trial_call_to_the_next_caller() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    assert not await calls.call(timeout=0.01)
    calls.error_class = None
    assert await calls.call()


async def test_cancelled_trial_call_is_replaced_by_another_call() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    cancelled = asyncio.create_task(calls.call())
    await asyncio.sleep(0)
    calls.error_class = None
    following = asyncio.create_task(calls.call())
    cancelled.cancel()
    assert await following


async def test_any_success_admits_all_waiting_calls_at_once() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    async with calls.breaker.admission("", 60) as under_way:
        calls.error_class = ErrorClass.UNREACHABLE
        for _ in range(4):
            await calls.call()  # all but the first are trial calls, after ever longer waits
        calls.error_class = None
        waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
        await asyncio.sleep(0)
        before = asyncio.get_running_loop().time()
        assert under_way is not None
        under_way.record(decision())
        assert all(await asyncio.gather(*waiting))
    assert asyncio.get_running_loop().time() - before < 0.5  # before the next trial call would be due


async def test_inconclusive_trial_call_does_not_close_the_circuit() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    for error_class in (ErrorClass.UNREACHABLE, ErrorClass.TIMEOUT):
        calls.error_class = error_class
        await calls.call()
        assert calls.breaker.open


async def test_last_attempt_is_admitted_while_the_circuit_is_open() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    async with calls.breaker.admission("", 0.01, even_if_open=True) as admission:
        assert admission is not None


async def test_stop_rejects_waiting_calls() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    waiting = [asyncio.create_task(calls.call()) for _ in range(3)]
    await asyncio.sleep(0)
    calls.breaker.stop()
    assert await asyncio.gather(*waiting) == [False] * 3
    assert not await calls.call()


async def test_rate_limit_holds_after_an_outage() -> None:
    calls = Calls(ProviderLimits(concurrency=100, rate=50))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    calls.error_class = None
    waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    began, admitted = asyncio.get_running_loop().time(), calls.admitted
    await asyncio.gather(*waiting)
    assert asyncio.get_running_loop().time() - began >= (calls.admitted - admitted - 1) / 50


def test_only_calls_with_the_same_key_are_spaced_out() -> None:
    limiter = RateLimiter(0.5)
    assert [limiter.reserve("a", 10.0, 60) for _ in range(3)] == [0, 0.5, 1.0]
    assert limiter.reserve("b", 10.0, 60) == 0
    assert limiter.reserve("a", 20.0, 60) == 0


def test_slot_too_far_in_the_future_is_not_reserved() -> None:
    limiter = RateLimiter(LONGEST_RESERVATION + 1)
    assert limiter.reserve("a", 0.0, 60) == 0
    for _ in range(2):
        with pytest.raises(TimeoutError):
            limiter.reserve("a", 0.0, 60)
    assert limiter.reserve("a", 2.0, 60) == LONGEST_RESERVATION - 1


async def test_no_trial_call_before_retry_after_has_elapsed() -> None:
    for retry_after in (timedelta(seconds=20), timedelta(hours=1)):
        breaker = CircuitBreaker("a provider", ProviderLimits(concurrency=100))
        began = asyncio.get_running_loop().time()
        async with breaker.admission("", 60) as admission:
            assert admission is not None
            admission.record(decision(ErrorClass.THROTTLED, Throttled("429", retry_after=retry_after)))
        assert breaker.open_until is not None
        assert breaker.open_until >= began + min(retry_after, LONGEST_OPEN).total_seconds()


async def test_outage_of_one_provider_does_not_affect_another() -> None:
    limits = ProviderLimits(concurrency=1, provider_of=lambda recipient: recipient.partition("/")[0])
    breakers = CircuitBreakers("a provider", limits)
    async with breakers.for_recipient("down/1").admission("", 1) as admission:
        assert admission is not None
        admission.record(decision(ErrorClass.UNREACHABLE))
    assert breakers.for_recipient("down/2").open
    assert not breakers.for_recipient("well/1").open
    breakers.stop()
    for recipient in ("well/2", "new/1"):
        async with breakers.for_recipient(recipient).admission("", 1) as admission:
            assert admission is None


async def test_idle_circuit_breakers_are_evicted() -> None:
    limits = ProviderLimits(concurrency=1, provider_of=lambda recipient: recipient)
    breakers = CircuitBreakers("a provider", limits, max_breakers=3)
    open_, inside, idle = (
        breakers.for_recipient("open"),
        breakers.for_recipient("inside"),
        breakers.for_recipient("idle"),
    )
    async with open_.admission("", 1) as admission:
        assert admission is not None
        admission.record(decision(ErrorClass.UNREACHABLE))
    async with inside.admission("", 1):
        breakers.for_recipient("one more than max_breakers")
        assert breakers.for_recipient("open") is open_
        assert breakers.for_recipient("inside") is inside
        assert breakers.for_recipient("idle") is not idle


def test_slot_after_the_timeout_is_not_reserved() -> None:
    limiter = RateLimiter(0.5)
    assert [limiter.reserve("a", 0.0, 1) for _ in range(3)] == [0, 0.5, 1.0]
    with pytest.raises(TimeoutError):
        limiter.reserve("a", 0.0, 1)
    assert limiter.reserve("a", 1.0, 1) == 0.5


async def test_call_that_cannot_be_admitted_in_time_is_rejected_at_once() -> None:
    breaker = CircuitBreaker("a provider", ProviderLimits(concurrency=1))
    async with breaker.admission("", 1) as admission:
        assert admission is not None
        admission.record(decision(ErrorClass.THROTTLED, Throttled("429", retry_after=timedelta(seconds=20))))
    waiting = asyncio.ensure_future(breaker.admission("", 10).__aenter__())
    await asyncio.sleep(0)
    assert waiting.done()
    assert waiting.result() is None


async def test_error_about_one_recipient_does_not_open_the_circuit() -> None:
    breaker = CircuitBreaker("a provider", ProviderLimits(concurrency=1))
    async with breaker.admission("", 1) as admission:
        assert admission is not None
        admission.record(decision(ErrorClass.UNREACHABLE, Unreachable("http_401", of_recipient=True)))
    assert not breaker.open
