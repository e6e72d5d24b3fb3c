"""One attempt: call the provider, and decide what its answer means. The decision is pure."""

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from notify_common.contracts.messages import SHORT_TEXT_LENGTH, DeliveryRequested, DeliveryResult, ErrorClass, Outcome
from notify_common.runtime.clock import utc_now
from notify_common.sending.errors import (
    PermanentFailure,
    ProviderFailure,
    TemporaryFailure,
    Throttled,
    UnknownOutcome,
    Unreachable,
)
from notify_common.sending.provider import Provider
from notify_common.sending.retry_schedule import RetrySchedule


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """What a provider call came to: a message id, or a failure."""

    started_at: datetime
    finished_at: datetime
    provider_message_id: str | None = None
    failure: ProviderFailure | None = None
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The result to report and, where there is a next attempt, the request for it."""

    result: DeliveryResult
    next_request: DeliveryRequested | None = None
    failure: ProviderFailure | None = None
    """What the provider said, for who decides whether it may be asked."""


@dataclass(frozen=True, slots=True)
class Postponed:
    """The attempt was not made: the request for it comes again."""

    next_request: DeliveryRequested


async def attempt_delivery(
    provider: Provider, request: DeliveryRequested, timeout: float, schedule: RetrySchedule
) -> Decision:
    """Call the provider for at most `timeout` seconds, unless the delivery's time is over, and decide."""
    now = utc_now()
    if request.expires_at is not None and request.expires_at <= now:
        return Decision(expired(request, now))
    answer = await call_provider(provider, request, timeout, started_at=now)
    return replace(decide(request, answer, schedule), failure=answer.failure)


async def call_provider(
    provider: Provider, request: DeliveryRequested, timeout: float, *, started_at: datetime
) -> ProviderAnswer:
    """What the provider answers within `timeout` seconds."""
    start = time.monotonic()
    message_id: str | None = None
    failure: ProviderFailure | None = None
    timed_out = False
    try:
        async with asyncio.timeout(timeout):
            message_id = await provider.send(request)
    except TimeoutError:
        failure, timed_out = TemporaryFailure("timeout"), True
    except ProviderFailure as error:
        failure = error
    # Not the wall clock again: it may have been set back meanwhile.
    finished_at = started_at + timedelta(seconds=time.monotonic() - start)
    return ProviderAnswer(started_at, finished_at, message_id, failure, timed_out)


def decide(request: DeliveryRequested, answer: ProviderAnswer, schedule: RetrySchedule) -> Decision:
    """What the provider's answer means for the delivery."""
    failure = answer.failure
    if failure is None:
        return Decision(_result(request, answer, Outcome.SENT, failures=request.failures))
    if isinstance(failure, Throttled | Unreachable):
        return _wait(request, answer, failure, schedule)
    failures = request.failures + 1
    if isinstance(failure, PermanentFailure):
        return Decision(_result(request, answer, Outcome.FAILED, failures=failures, error_class=ErrorClass.PERMANENT))
    error_class = ErrorClass.TEMPORARY
    if isinstance(failure, UnknownOutcome):
        error_class = ErrorClass.UNKNOWN
    elif answer.timed_out:
        error_class = ErrorClass.TIMEOUT
    if schedule.exhausted(failures):
        return Decision(_result(request, answer, Outcome.FAILED, failures=failures, error_class=error_class))
    return _try_again(request, answer, Outcome.RETRYING, error_class, failures, schedule.delay_after(failures))


def _wait(
    request: DeliveryRequested, answer: ProviderAnswer, failure: Throttled | Unreachable, schedule: RetrySchedule
) -> Decision:
    """Another attempt without a failure, for as long as the schedule waits at all."""
    throttled = isinstance(failure, Throttled)
    outcome = Outcome.THROTTLED if throttled else Outcome.RETRYING
    error_class = ErrorClass.THROTTLED if throttled else ErrorClass.UNREACHABLE
    since = request.waiting_since or answer.started_at
    waited = answer.finished_at - since
    if waited >= schedule.max_wait:
        return Decision(_result(request, answer, Outcome.FAILED, failures=request.failures, error_class=error_class))
    delay = failure.retry_after if isinstance(failure, Throttled) else None
    # As long again as it has waited: the waits double.
    delay = delay or schedule.rung_for(waited)
    return _try_again(request, answer, outcome, error_class, request.failures, delay, waiting_since=since)


def expired(request: DeliveryRequested, now: datetime) -> DeliveryResult:
    """The result of a delivery whose time is over before this attempt: the provider is not called."""
    return DeliveryResult(
        delivery_id=request.delivery_id,
        round=request.round,
        attempt=request.attempt - 1,
        failures=request.failures,
        outcome=Outcome.EXPIRED,
        started_at=now,
        finished_at=now,
        traceparent=request.traceparent,
    )


def _try_again(
    request: DeliveryRequested,
    answer: ProviderAnswer,
    outcome: Outcome,
    error_class: ErrorClass,
    failures: int,
    delay: timedelta,
    *,
    waiting_since: datetime | None = None,
) -> Decision:
    not_before = answer.finished_at + delay
    following = {
        "attempt": request.attempt + 1, "failures": failures, "not_before": not_before, "waiting_since": waiting_since
    }  # fmt: skip
    return Decision(
        _result(request, answer, outcome, failures=failures, error_class=error_class, next_attempt_at=not_before),
        request.model_copy(update=following),
    )


def _result(
    request: DeliveryRequested,
    answer: ProviderAnswer,
    outcome: Outcome,
    *,
    failures: int,
    error_class: ErrorClass | None = None,
    next_attempt_at: datetime | None = None,
) -> DeliveryResult:
    return DeliveryResult(
        delivery_id=request.delivery_id,
        round=request.round,
        attempt=request.attempt,
        failures=failures,
        outcome=outcome,
        error_class=error_class,
        error_code=_storable(answer.failure.code) if answer.failure else None,
        error_text=_one_line(answer.failure.text) if answer.failure and answer.failure.text else None,
        provider_message_id=_storable(answer.provider_message_id) if answer.provider_message_id else None,
        started_at=answer.started_at,
        finished_at=answer.finished_at,
        next_attempt_at=next_attempt_at,
        traceparent=request.traceparent,
    )


def _one_line(text: str) -> str:
    return _storable(" ".join(text.split()))


def _storable(text: str) -> str:
    """What a provider says may be anything; too long or with a NUL, it would cost its result."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:SHORT_TEXT_LENGTH]
