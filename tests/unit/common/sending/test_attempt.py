from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content, DeliveryRequested, ErrorClass, Outcome
from notify_common.sending.attempt import ProviderResponse, call_provider, decide, expired
from notify_common.sending.errors import (
    PermanentFailure,
    ProviderFailure,
    TemporaryFailure,
    Throttled,
    UnknownOutcome,
    Unreachable,
)
from notify_common.sending.retry_schedule import RetrySchedule
from notify_common.sending.simulator import Simulator
from support.fakes import FakeProvider

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SCHEDULE = RetrySchedule(first_delay=timedelta(seconds=1), max_attempts=3)


def request(attempt: int = 1, failures: int = 0, round_: int = 1) -> DeliveryRequested:
    return DeliveryRequested(
        delivery_id=UUID(int=1),
        notification_id=UUID(int=2),
        user_id=7,
        channel=Channel.EMAIL,
        content=Content(message="hello"),
        round=round_,
        attempt=attempt,
        failures=failures,
    )


def response(failure: ProviderFailure | None = None, *, timed_out: bool = False) -> ProviderResponse:
    return ProviderResponse(NOW, NOW + timedelta(seconds=1), None if failure else "id-1", failure, timed_out)


def test_accepted_delivery_is_reported_as_sent() -> None:
    decision = decide(request(attempt=2, failures=1), response(), SCHEDULE)
    assert decision.next_request is None
    result = decision.result
    assert (result.outcome, result.attempt, result.failures) == (Outcome.SENT, 2, 1)
    assert result.provider_message_id == "id-1"


def test_provider_text_is_cleaned_and_truncated_for_storage() -> None:
    dirty = "\x00" + "x" * 10_000
    sent = decide(request(), ProviderResponse(NOW, NOW, dirty), SCHEDULE)
    assert sent.result.provider_message_id == "x" * 500
    assert decide(request(), response(TemporaryFailure(dirty)), SCHEDULE).result.error_code == "x" * 500


def test_temporary_failure_is_retried_after_the_backoff() -> None:
    decision = decide(request(attempt=2, failures=1), response(TemporaryFailure("busy")), SCHEDULE)
    result, following = decision.result, decision.next_request
    assert (result.outcome, result.error_class, result.error_code) == (Outcome.RETRYING, ErrorClass.TEMPORARY, "busy")
    assert result.failures == 2
    assert following is not None
    assert (following.attempt, following.failures) == (3, 2)
    assert following.not_before == result.next_attempt_at == result.finished_at + timedelta(seconds=2)


def test_failure_that_exhausts_the_retry_budget_is_final() -> None:
    decision = decide(request(attempt=3, failures=2), response(TemporaryFailure("busy")), SCHEDULE)
    assert (decision.result.outcome, decision.result.failures) == (Outcome.FAILED, 3)
    assert decision.next_request is None


def test_timeout_has_its_own_error_class() -> None:
    decision = decide(request(), response(TemporaryFailure("timeout"), timed_out=True), SCHEDULE)
    assert (decision.result.outcome, decision.result.error_class) == (Outcome.RETRYING, ErrorClass.TIMEOUT)


def test_permanent_failure_is_final_immediately() -> None:
    decision = decide(request(), response(PermanentFailure("no such user")), SCHEDULE)
    assert (decision.result.outcome, decision.result.error_class) == (Outcome.FAILED, ErrorClass.PERMANENT)
    assert decision.next_request is None


def test_throttled_call_counts_as_an_attempt_but_not_as_a_failure() -> None:
    decision = decide(
        request(attempt=5, failures=2), response(Throttled("slow down", retry_after=timedelta(seconds=30))), SCHEDULE
    )
    assert (decision.result.outcome, decision.result.failures) == (Outcome.THROTTLED, 2)
    assert decision.next_request is not None
    assert (decision.next_request.attempt, decision.next_request.failures) == (6, 2)
    assert decision.next_request.not_before == decision.result.finished_at + timedelta(seconds=30)


def test_recipient_that_always_asks_for_a_short_wait_is_called_less_and_less_often() -> None:
    failure = Throttled("http_429", retry_after=timedelta(seconds=1), of_recipient=True)
    requested, now, calls = request(), NOW, 0
    while now < NOW + SCHEDULE.max_wait:
        calls += 1
        following = decide(requested, ProviderResponse(now, now, failure=failure), SCHEDULE).next_request
        assert following is not None
        assert following.not_before is not None
        requested, now = following, following.not_before
    assert calls < 50
    patient = Throttled("http_429", retry_after=timedelta(hours=1), of_recipient=True)
    following = decide(request(), response(patient), SCHEDULE).next_request
    assert following is not None
    assert following.not_before == NOW + timedelta(seconds=1, hours=1)


@pytest.mark.parametrize(
    "failure", [Throttled("429", retry_after=timedelta(hours=1)), Throttled("429"), TemporaryFailure("busy")]
)
@pytest.mark.parametrize("expires_in", [timedelta(seconds=1.5), timedelta(seconds=0.5)])
def test_retry_is_not_scheduled_after_the_expiry(failure: ProviderFailure, expires_in: timedelta) -> None:
    requested = request(failures=1).model_copy(update={"expires_at": NOW + expires_in})
    decision = decide(requested, response(failure), SCHEDULE)
    assert decision.next_request is not None
    # The delivery may have expired during the call.
    due_at = max(NOW + expires_in, decision.result.finished_at)
    assert decision.next_request.not_before == decision.result.next_attempt_at == due_at


def test_retry_has_no_reservation() -> None:
    decision = decide(request().model_copy(update={"reserved": True}), response(TemporaryFailure("busy")), SCHEDULE)
    assert decision.next_request is not None
    assert not decision.next_request.reserved


def test_expiry_does_not_count_as_an_attempt() -> None:
    result = expired(request(attempt=3, failures=2), NOW)
    assert (result.outcome, result.attempt, result.failures) == (Outcome.EXPIRED, 2, 2)


@given(st.lists(st.sampled_from(["temporary", "throttled"]), max_size=60), st.integers(min_value=1, max_value=10))
def test_round_never_exceeds_its_retry_budget(outcomes: list[str], budget: int) -> None:
    schedule = RetrySchedule(first_delay=timedelta(seconds=1), max_attempts=budget)
    current, failures = request(), 0
    for number, outcome in enumerate(outcomes, start=1):
        failure = TemporaryFailure("x") if outcome == "temporary" else Throttled("x", retry_after=timedelta(seconds=1))
        failures += outcome == "temporary"
        decision = decide(current, response(failure), schedule)
        assert (decision.result.attempt, decision.result.failures) == (number, failures)
        assert (decision.next_request is None) == (failures >= budget)
        if decision.next_request is None:
            break
        current = decision.next_request


async def test_provider_timeout_is_a_temporary_failure() -> None:
    outcome = await call_provider(Simulator(latency=60, error_probability=0), request(), timeout=0.01, started_at=NOW)
    assert outcome.timed_out
    assert isinstance(outcome.failure, TemporaryFailure)
    assert outcome.finished_at > outcome.started_at


async def test_unexpected_provider_exception_propagates() -> None:
    async def bug(_: DeliveryRequested) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await call_provider(FakeProvider(bug), request(), timeout=1, started_at=NOW)


@pytest.mark.parametrize(("probability", "fails"), [(0, False), (1, True)])
async def test_simulator_never_fails_at_probability_0_and_always_fails_at_1(probability: float, fails: bool) -> None:
    simulator = Simulator(latency=0, error_probability=probability)
    responses = [await call_provider(simulator, request(), timeout=1, started_at=NOW) for _ in range(200)]
    assert {response.failure is not None for response in responses} == {fails}


@pytest.mark.parametrize(
    ("failure", "outcome", "error_class"),
    [
        (Unreachable("connect"), Outcome.RETRYING, ErrorClass.UNREACHABLE),
        (Throttled("smtp_421"), Outcome.THROTTLED, ErrorClass.THROTTLED),
    ],
)
def test_provider_outage_backs_off_without_using_the_retry_budget(
    failure: ProviderFailure, outcome: Outcome, error_class: ErrorClass
) -> None:
    requested, waits = request(failures=2), []
    now = NOW
    for _ in range(6):
        decision = decide(requested, ProviderResponse(now, now, failure=failure), SCHEDULE)
        assert (decision.result.outcome, decision.result.error_class) == (outcome, error_class)
        assert decision.result.failures == 2
        assert decision.next_request is not None
        assert decision.next_request.waiting_since == NOW
        requested = decision.next_request
        assert requested.not_before is not None
        waits.append((requested.not_before - now).total_seconds())
        now = requested.not_before
    assert waits == [1, 1, 2, 4, 8, 16]


def test_first_wait_for_an_unreachable_provider_is_the_first_delay() -> None:
    schedule = RetrySchedule(first_delay=timedelta(minutes=10), max_attempts=3)
    decision = decide(request(), response(Unreachable("connect")), schedule)
    assert decision.result.next_attempt_at == decision.result.finished_at + timedelta(minutes=10)


def test_delivery_fails_after_the_maximum_wait() -> None:
    late = NOW + SCHEDULE.max_wait
    waiting = request(attempt=9).model_copy(update={"waiting_since": NOW})
    decision = decide(waiting, ProviderResponse(late, late, failure=Unreachable("connect")), SCHEDULE)
    assert decision.next_request is None
    result = decision.result
    assert (result.outcome, result.error_class) == (Outcome.FAILED, ErrorClass.UNREACHABLE)


def test_failure_of_the_delivery_itself_resets_the_wait() -> None:
    waiting = request(attempt=2).model_copy(update={"waiting_since": NOW})
    decision = decide(waiting, response(TemporaryFailure("busy")), SCHEDULE)
    assert decision.next_request is not None
    assert decision.next_request.waiting_since is None


def test_unknown_outcome_is_retried_and_recorded() -> None:
    decision = decide(request(), response(UnknownOutcome("connection_lost", " it\r\nbroke\x00")), SCHEDULE)
    result = decision.result
    assert (result.outcome, result.error_class, result.failures) == (Outcome.RETRYING, ErrorClass.UNKNOWN, 1)
    assert (result.error_code, result.error_text) == ("connection_lost", "it broke")
    assert decision.next_request is not None
