"""Make one attempt: call the provider, and decide what its response means. The decision is a pure function."""

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from notify_common.contracts.messages import (
    SHORT_TEXT_LENGTH,
    DeliveryRequested,
    DeliveryResult,
    ErrorClass,
    Outcome,
    incremented,
)
from notify_common.runtime.clock import utc_now
from notify_common.sending import errors
from notify_common.sending.provider import Provider
from notify_common.sending.retry_schedule import RetrySchedule


@dataclass(frozen=True, slots=True)
class ProviderResponse:
    """The provider's response to a call: a message id, or a failure such as a timeout."""

    started_at: datetime
    finished_at: datetime
    provider_message_id: str | None = None
    failure: errors.ProviderFailure | None = None
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The result to report and, if the delivery will be retried, the request for the next attempt."""

    result: DeliveryResult
    next_request: DeliveryRequested | None = None
    failure: errors.ProviderFailure | None = None
    """The provider's failure, which the circuit breaker needs to know."""


@dataclass(frozen=True, slots=True)
class Postponed:
    """An attempt that was not made, with the request that schedules it again."""

    next_request: DeliveryRequested


async def attempt_delivery(
    provider: Provider, request: DeliveryRequested, timeout: float, schedule: RetrySchedule
) -> Decision:
    """Call the provider for at most `timeout` seconds, unless the delivery has expired, and decide what follows."""
    now = utc_now()
    if request.expires_at is not None and request.expires_at <= now:
        return Decision(expired(request, now))
    response = await call_provider(provider, request, timeout, started_at=now)
    return replace(decide(request, response, schedule), failure=response.failure)


async def call_provider(
    provider: Provider, request: DeliveryRequested, timeout: float, *, started_at: datetime
) -> ProviderResponse:
    """Call the provider and return its response, which is a failure if it takes longer than `timeout` seconds."""
    start = time.monotonic()
    message_id: str | None = None
    failure: errors.ProviderFailure | None = None
    timed_out = False
    try:
        async with asyncio.timeout(timeout):
            message_id = await provider.send(request)
    except TimeoutError:
        failure, timed_out = errors.TemporaryFailure("timeout"), True
    except errors.ProviderFailure as error:
        # The traceback refers to this frame, and this frame to the failure. That cycle would keep the message's content
        # in memory until the garbage collector finds it.
        failure = error.with_traceback(None)
    # The monotonic clock measures the duration, because the wall clock may have been set back during the call.
    finished_at = started_at + timedelta(seconds=time.monotonic() - start)
    return ProviderResponse(started_at, finished_at, message_id, failure, timed_out)


def decide(request: DeliveryRequested, response: ProviderResponse, schedule: RetrySchedule) -> Decision:
    """Decide what the provider's response means for the delivery."""
    failure = response.failure
    if failure is None:
        return Decision(_result(request, response, Outcome.SENT, failures=request.failures))
    if isinstance(failure, errors.Throttled | errors.Unreachable):
        return _retry_unavailable(request, response, failure, schedule)
    failures = incremented(request.failures)
    if isinstance(failure, errors.PermanentFailure):
        return Decision(_result(request, response, Outcome.FAILED, failures=failures, error_class=ErrorClass.PERMANENT))
    error_class = ErrorClass.TEMPORARY
    if isinstance(failure, errors.UnknownOutcome):
        error_class = ErrorClass.UNKNOWN
    elif response.timed_out:
        error_class = ErrorClass.TIMEOUT
    if schedule.exhausted(failures):
        return Decision(_result(request, response, Outcome.FAILED, failures=failures, error_class=error_class))
    return _retry(request, response, Outcome.RETRYING, error_class, failures, schedule.delay_after(failures))


def _retry_unavailable(
    request: DeliveryRequested,
    response: ProviderResponse,
    failure: errors.Throttled | errors.Unreachable,
    schedule: RetrySchedule,
) -> Decision:
    """Retry without consuming the retry budget, for at most the schedule's `max_wait`."""
    if isinstance(failure, errors.Throttled):
        outcome, error_class, delay = Outcome.THROTTLED, ErrorClass.THROTTLED, failure.retry_after or timedelta()
    else:
        outcome, error_class, delay = Outcome.RETRYING, ErrorClass.UNREACHABLE, timedelta()
    since = request.waiting_since or response.started_at
    waited = response.finished_at - since
    if waited >= schedule.max_wait:
        return Decision(_result(request, response, Outcome.FAILED, failures=request.failures, error_class=error_class))
    if not delay or failure.of_recipient:
        # The backoff is about as long as the whole wait so far, so it doubles each time. A recipient cannot shorten it,
        # because one that always asks for a short wait could otherwise cause an attempt per second.
        backoff = max(schedule.delay_after(1), schedule.queue_delay(waited))
        delay = max(delay, backoff)
    return _retry(request, response, outcome, error_class, request.failures, delay, waiting_since=since)


def expired(request: DeliveryRequested, now: datetime) -> DeliveryResult:
    """Return the result for a delivery that expired before this attempt, so that the provider was not called."""
    result = _result(request, ProviderResponse(now, now), Outcome.EXPIRED, failures=request.failures)
    return result.model_copy(update={"attempt": request.attempt - 1})


def _retry(
    request: DeliveryRequested,
    response: ProviderResponse,
    outcome: Outcome,
    error_class: ErrorClass,
    failures: int,
    delay: timedelta,
    *,
    waiting_since: datetime | None = None,
) -> Decision:
    not_before = response.finished_at + delay
    if request.expires_at is not None:
        # A delivery that expires before its next attempt is reported as soon as it expires.
        not_before = min(not_before, max(request.expires_at, response.finished_at))
    changes = {
        "attempt": incremented(request.attempt), "failures": failures, "not_before": not_before,
        "waiting_since": waiting_since, "reserved": False,
    }  # fmt: skip
    return Decision(
        _result(request, response, outcome, failures=failures, error_class=error_class, next_attempt_at=not_before),
        request.model_copy(update=changes),
    )


def _result(
    request: DeliveryRequested,
    response: ProviderResponse,
    outcome: Outcome,
    *,
    failures: int,
    error_class: ErrorClass | None = None,
    next_attempt_at: datetime | None = None,
) -> DeliveryResult:
    failure = response.failure
    return DeliveryResult(
        delivery_id=request.delivery_id,
        round=request.round,
        attempt=request.attempt,
        failures=failures,
        outcome=outcome,
        error_class=error_class,
        error_code=_storable(failure.code) if failure else None,
        error_text=_storable(" ".join(failure.text.split())) if failure and failure.text else None,  # on one line
        provider_message_id=_storable(response.provider_message_id) if response.provider_message_id else None,
        started_at=response.started_at,
        finished_at=response.finished_at,
        next_attempt_at=next_attempt_at,
        traceparent=request.traceparent,
    )


def _storable(text: str) -> str:
    """Return `text` in a form that PostgreSQL can store, whatever the provider sent."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:SHORT_TEXT_LENGTH]
