import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from notify_common.contracts.messages import DeliveryResult, ErrorClass, Outcome
from notify_common.sending.admission_by_provider import AdmissionByProvider
from notify_common.sending.admission_control import Admission, AdmissionControl
from notify_common.sending.attempt import Decision
from notify_common.sending.call import Call, NotAdmitted
from notify_common.sending.circuit_breaker import LONGEST_OPEN
from notify_common.sending.errors import ProviderFailure, Throttled, Unreachable
from notify_common.sending.provider_limits import ProviderLimits

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
        self.control = AdmissionControl("a provider", limits)
        self.error_class: ErrorClass | None = None
        self.admitted = 0
        self.under_way = 0
        self.most_at_once = 0

    async def call(self, timeout: float = 60, recipient: str = "") -> bool:
        async with self.control.admission(Call(recipient, timeout)) as admission:
            if isinstance(admission, NotAdmitted):
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
    async with calls.control.admission(Call("", 60)) as under_way:
        calls.error_class = ErrorClass.UNREACHABLE
        for _ in range(4):
            await calls.call()  # all but the first are trial calls, after ever longer waits
        calls.error_class = None
        waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
        await asyncio.sleep(0)
        before = asyncio.get_running_loop().time()
        assert isinstance(under_way, Admission)
        under_way.record(decision())
        assert all(await asyncio.gather(*waiting))
    assert asyncio.get_running_loop().time() - before < 0.5  # before the next trial call would be due


async def test_inconclusive_trial_call_does_not_close_the_circuit() -> None:
    calls = Calls(ProviderLimits(concurrency=100))
    for error_class in (ErrorClass.UNREACHABLE, ErrorClass.TIMEOUT):
        calls.error_class = error_class
        await calls.call()
        assert calls.control.circuit.open


@pytest.mark.parametrize("error_class", [ErrorClass.TIMEOUT, ErrorClass.UNKNOWN])
async def test_trial_call_that_had_a_connection_closes_the_circuit(error_class: ErrorClass) -> None:
    calls = Calls(ProviderLimits(concurrency=100, connect_timeout=timedelta(seconds=60)))
    calls.error_class = ErrorClass.UNREACHABLE
    async with calls.control.admission(Call("", 60)) as under_way:
        await calls.call()
        assert isinstance(under_way, Admission)
        # This call was made before the circuit opened, so that it shows nothing.
        under_way.record(decision(error_class))
        assert calls.control.circuit.open
    calls.error_class = error_class
    await calls.call()
    assert not calls.control.circuit.open


async def test_trial_call_that_hangs_after_it_had_time_to_connect_holds_up_no_others() -> None:
    calls = Calls(ProviderLimits(concurrency=100, connect_timeout=timedelta(milliseconds=50)))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    calls.error_class = None
    async with calls.control.admission(Call("", 60)) as hanging:
        assert isinstance(hanging, Admission)
        assert hanging.trial_number
        assert await calls.call(timeout=5)


async def test_trial_call_that_hangs_leaves_an_outage_that_begins_later_to_another_trial() -> None:
    calls = Calls(ProviderLimits(concurrency=100, connect_timeout=timedelta(milliseconds=50)))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    async with calls.control.admission(Call("", 60)) as hanging:
        assert isinstance(hanging, Admission)
        assert hanging.trial_number
        assert await calls.call(timeout=5)
        assert calls.control.circuit.open
        assert await calls.call(timeout=5)
        hanging.record(decision(ErrorClass.TIMEOUT))
        assert calls.control.circuit.open


async def test_last_attempt_is_admitted_while_the_circuit_is_open() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    async with calls.control.admission(Call("", 0.01, even_if_open=True)) as admission:
        assert isinstance(admission, Admission)


async def test_stop_rejects_waiting_calls() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    waiting = [asyncio.create_task(calls.call()) for _ in range(3)]
    await asyncio.sleep(0)
    calls.control.stop()
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


async def test_no_trial_call_before_retry_after_has_elapsed() -> None:
    for retry_after in (timedelta(seconds=20), timedelta(hours=1)):
        control = AdmissionControl("a provider", ProviderLimits(concurrency=100))
        began = asyncio.get_running_loop().time()
        async with control.admission(Call("", 60)) as admission:
            assert isinstance(admission, Admission)
            admission.record(decision(ErrorClass.THROTTLED, Throttled("429", retry_after=retry_after)))
        assert control.circuit.open_until is not None
        assert control.circuit.open_until >= began + min(retry_after, LONGEST_OPEN).total_seconds()


async def test_outage_of_one_provider_does_not_affect_another() -> None:
    limits = ProviderLimits(concurrency=1, provider_of=lambda recipient: recipient.partition("/")[0])
    controls = AdmissionByProvider("a provider", limits)
    async with controls.for_recipient("down/1").admission(Call("", 1)) as admission:
        assert isinstance(admission, Admission)
        admission.record(decision(ErrorClass.UNREACHABLE))
    assert controls.for_recipient("down/2").circuit.open
    assert not controls.for_recipient("well/1").circuit.open
    controls.stop()
    for recipient in ("well/2", "new/1"):
        async with controls.for_recipient(recipient).admission(Call("", 1)) as admission:
            assert admission == NotAdmitted(wait=0)


async def test_idle_controls_are_evicted() -> None:
    limits = ProviderLimits(concurrency=1, provider_of=lambda recipient: recipient)
    controls = AdmissionByProvider("a provider", limits, max_controls=3)
    open_, inside, idle = (
        controls.for_recipient("open"),
        controls.for_recipient("inside"),
        controls.for_recipient("idle"),
    )
    async with open_.admission(Call("", 1)) as admission:
        assert isinstance(admission, Admission)
        admission.record(decision(ErrorClass.UNREACHABLE))
    async with inside.admission(Call("", 1)):
        controls.for_recipient("one more than max_controls")
        assert controls.for_recipient("open") is open_
        assert controls.for_recipient("inside") is inside
        assert controls.for_recipient("idle") is not idle


async def test_call_that_cannot_be_admitted_in_time_is_rejected_at_once() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=1, retry_after=timedelta(seconds=7)))
    async with control.admission(Call("", 1)) as admission:
        assert isinstance(admission, Admission)
        admission.record(decision(ErrorClass.THROTTLED, Throttled("429", retry_after=timedelta(seconds=20))))
    waiting = asyncio.ensure_future(control.admission(Call("", 10)).__aenter__())
    await asyncio.sleep(0)
    assert waiting.done()
    assert waiting.result() == NotAdmitted(wait=7, circuit_open=True)


async def test_error_about_one_recipient_does_not_open_the_circuit() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=1))
    async with control.admission(Call("", 1)) as admission:
        assert isinstance(admission, Admission)
        admission.record(decision(ErrorClass.UNREACHABLE, Unreachable("http_401", of_recipient=True)))
    assert not control.circuit.open


def throttled(seconds: float = 60) -> Decision:
    """Return a decision after a response that names no scope, such as a 429 from Telegram."""
    failure = Throttled("429", retry_after=timedelta(seconds=seconds), scope_unknown=True)
    return decision(ErrorClass.THROTTLED, failure)


async def test_throttled_recipient_waits_while_the_circuit_stays_closed() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    async with calls.control.admission(Call("a", 1)) as admission:
        assert isinstance(admission, Admission)
        admission.record(throttled())
    assert not calls.control.circuit.open
    assert await calls.call(recipient="b")
    async with calls.control.admission(Call("a", 120)) as admission:
        assert isinstance(admission, NotAdmitted)
        assert admission.wait == pytest.approx(60, abs=1)


async def test_second_throttled_recipient_opens_the_circuit() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=1))
    for recipient, is_open in (("a", False), ("b", True)):
        async with control.admission(Call(recipient, 1)) as admission:
            assert isinstance(admission, Admission)
            admission.record(throttled())
        assert control.circuit.open is is_open


async def test_throttled_recipients_do_not_open_the_circuit_while_others_are_served() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=1))
    for recipient, response in (("a", throttled()), ("b", decision()), ("c", throttled())):
        async with control.admission(Call(recipient, 1)) as admission:
            assert isinstance(admission, Admission)
            admission.record(response)
    assert not control.circuit.open


async def test_trial_calls_soon_verify_whether_all_recipients_are_throttled() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=1))
    control.circuit.record(throttled(), "the first", is_trial=False)
    # Many groups of one tenant that are all over their own limits must not delay the others for long.
    for number in range(30):
        control.circuit.record(throttled(), f"group {number}", is_trial=number > 0)
        assert control.circuit.open_until is not None
        assert control.circuit.open_until < asyncio.get_running_loop().time() + 10


async def test_trial_call_that_is_throttled_only_for_its_recipient_leaves_the_next_trial_to_another() -> None:
    calls = Calls(ProviderLimits(concurrency=1))
    calls.error_class = ErrorClass.UNREACHABLE
    await calls.call()
    opened_until = calls.control.circuit.open_until
    async with calls.control.admission(Call("a", 10)) as admission:
        assert isinstance(admission, Admission)
        admission.record(throttled())
    assert calls.control.circuit.open_until == opened_until
    calls.error_class = None
    assert await calls.call(recipient="b")
    assert not calls.control.circuit.open


async def test_recipient_that_is_throttled_again_does_not_open_the_circuit() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=2))
    async with control.admission(Call("a", 1)) as first, control.admission(Call("a", 1)) as second:
        for admission in (first, second):
            assert isinstance(admission, Admission)
            admission.record(throttled())
    assert not control.circuit.open


async def test_distant_turn_is_not_waited_for() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=10, rate_per_recipient=0.1))
    admissions = []
    for recipient in ("a", "a", "a", "b"):
        async with control.admission(Call(recipient, 60)) as admission:
            admissions.append(admission)
    assert [isinstance(admission, Admission) for admission in admissions] == [True, False, False, True]
    turns = [admission.wait for admission in admissions if isinstance(admission, NotAdmitted)]
    assert turns == [pytest.approx(10, abs=1), pytest.approx(20, abs=1)]


async def test_call_with_a_reservation_does_not_queue_behind_later_ones() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=10, rate_per_recipient=0.1))
    for _ in range(3):
        async with control.admission(Call("a", 60)):
            pass  # the second and third calls reserve turns in 10 and 20 seconds
    async with control.admission(Call("a", 60, turn_in=0)) as admission:
        # The last call was just now, so this one has to wait for one interval only.
        assert isinstance(admission, NotAdmitted)
        assert admission.wait == pytest.approx(10, abs=1)


async def test_call_that_expires_before_its_turn_takes_no_turn() -> None:
    control = AdmissionControl("a provider", ProviderLimits(concurrency=10, rate_per_recipient=0.1))
    turns = []
    for expires_in in (60.0, 9.0, 9.0, 60.0):
        async with control.admission(Call("a", expires_in, expires_in=expires_in)) as admission:
            turns.append(admission.wait if isinstance(admission, NotAdmitted) else 0)
    assert turns == [0, *[pytest.approx(10, abs=1)] * 3]


async def test_calls_that_wait_for_a_turn_occupy_no_slot() -> None:
    calls = Calls(ProviderLimits(concurrency=1, rate_per_recipient=1))
    waiting = [asyncio.create_task(calls.call(recipient="a")) for _ in range(3)]
    await asyncio.sleep(0)
    assert await calls.call(recipient="b")
    assert not waiting[1].done()
    calls.control.stop()
    assert (await asyncio.gather(*waiting))[1:] == [False, False]


async def test_circuit_that_opens_holds_back_the_calls_that_wait_for_the_rate_limit() -> None:
    calls = Calls(ProviderLimits(concurrency=100, rate=20))
    calls.error_class = ErrorClass.UNREACHABLE
    waiting = [asyncio.create_task(calls.call()) for _ in range(20)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    # The next call is the trial; before that, the others would have been made at the rate of the limit.
    await asyncio.sleep(0.15)
    assert calls.admitted == 1
    calls.error_class = None
    assert all(await asyncio.gather(*waiting))


@pytest.mark.parametrize(
    ("limits", "prefetch"),
    [
        (ProviderLimits(concurrency=10), 100),
        (ProviderLimits(concurrency=100), 500),
        (ProviderLimits(concurrency=10, rate=1), 10),
        (ProviderLimits(concurrency=10, rate=0.1), 3),
        (ProviderLimits(concurrency=30, rate=30), 150),
        (ProviderLimits(concurrency=30, rate=1000), 500),
        (ProviderLimits(concurrency=20, rate=1, provider_of=lambda recipient: recipient), 500),
    ],
)
def test_sender_holds_only_what_keeps_its_provider_busy(limits: ProviderLimits, prefetch: int) -> None:
    assert limits.prefetch(500, call_timeout=30) == prefetch
