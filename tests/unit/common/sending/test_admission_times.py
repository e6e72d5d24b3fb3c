"""When calls are admitted, on a virtual clock: no recipient and no pause of the process disturbs the others' pace."""

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from uuid import UUID

import pytest
from notify_common.contracts.messages import DeliveryResult, ErrorClass, Outcome
from notify_common.sending.admission_by_provider import AdmissionByProvider
from notify_common.sending.admission_control import Admission, AdmissionControl
from notify_common.sending.attempt import Decision
from notify_common.sending.call import Call, NotAdmitted
from notify_common.sending.call_slots import CallSlots, Quota
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.return_times import LONGEST_WAIT
from support.virtual_clock import VirtualLoop, run_virtually

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SENT = Decision(
    DeliveryResult(
        delivery_id=UUID(int=1), round=1, attempt=1, failures=0, outcome=Outcome.SENT, started_at=NOW, finished_at=NOW
    )
)
TIMED_OUT = Decision(
    SENT.result.model_copy(update={"outcome": Outcome.RETRYING, "error_class": ErrorClass.TIMEOUT}),
)
LONG = (1.0, 2.0, 3.0)  # the delays of a call's further messages


class Caller:
    """Makes calls that take 0.1 s each, and records when they were admitted."""

    def __init__(self, limits: ProviderLimits) -> None:
        self.control = AdmissionControl("a provider", limits)
        self.admitted: defaultdict[str, list[float]] = defaultdict(list)
        self.turned_away: defaultdict[str, list[float]] = defaultdict(list)

    async def call(self, recipient: str, turn_in: float | None = None, ready: asyncio.Event | None = None) -> None:
        async with self.control.admission(Call(recipient, 120, turn_in=turn_in, ready=ready)) as admission:
            if isinstance(admission, Admission):
                self.admitted[recipient].append(now())
                await asyncio.sleep(0.1)
                admission.record(SENT)
            else:
                self.turned_away[recipient].append(admission.wait)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_recipients_whose_turns_come_together_delay_no_other_recipient() -> None:
    async def main() -> None:
        caller = Caller(ProviderLimits(concurrency=5, rate=30, rate_per_recipient=1))
        async with asyncio.TaskGroup() as calls:
            for _ in range(4):
                for busy in range(5):
                    # Another process, or this one before a restart, has made these reservations.
                    calls.create_task(caller.call(f"busy {busy}", turn_in=0))
            await asyncio.sleep(0.5)
            await asyncio.wait_for(caller.call("quiet"), 1)
        for busy in range(5):
            assert caller.admitted[f"busy {busy}"] == pytest.approx([0, 1, 2, 3], abs=0.2)

    run_virtually(main())


def test_recipients_whose_turns_come_together_keep_only_a_few_seconds_of_them_in_memory() -> None:
    async def main() -> None:
        caller = Caller(ProviderLimits(concurrency=5, rate_per_recipient=1))
        async with asyncio.TaskGroup() as calls:
            for _ in range(20):
                calls.create_task(caller.call("busy", turn_in=0))
        assert caller.admitted["busy"] == pytest.approx(list(range(7)))
        # The others get the turns that follow.
        assert caller.turned_away["busy"] == pytest.approx(list(range(7, 20)))

    run_virtually(main())


def test_recipient_is_not_called_in_a_burst_after_an_outage() -> None:
    async def main() -> None:
        caller = Caller(ProviderLimits(concurrency=2, rate=30, rate_per_recipient=1))
        caller.control.circuit.open_until = 20.0
        async with asyncio.TaskGroup() as calls:
            for _ in range(5):
                for recipient in "abc":
                    calls.create_task(caller.call(recipient))
        assert [len(times) for times in caller.admitted.values()] == [5, 5, 5]
        for times in caller.admitted.values():
            assert all(later - earlier >= 1 - 1e-3 for earlier, later in pairwise(times))

    run_virtually(main())


def test_calls_keep_their_distance_after_the_process_was_stopped() -> None:
    async def main() -> None:
        caller = Caller(ProviderLimits(concurrency=30, rate=30))
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        async with asyncio.TaskGroup() as calls:
            for _ in range(100):
                calls.create_task(caller.call(""))
            await asyncio.sleep(1)
            loop.pause(60)
        times = caller.admitted[""]
        assert all(times[first + 30] - times[first] >= 1 - 2 / 30 for first in range(len(times) - 30))

    run_virtually(main())


def test_calls_that_wait_for_a_trial_hold_no_slot_of_their_tenant() -> None:
    tenant = Quota("tenant", 4)
    controls = AdmissionByProvider("host", ProviderLimits(concurrency=2, provider_of=lambda recipient: recipient))

    async def call(recipient: str) -> float | None:
        async with controls.for_recipient(recipient).admission(Call(recipient, 1, quotas=(tenant,))) as admission:
            if isinstance(admission, Admission):
                admitted_at = now()
                await asyncio.sleep(60)
                admission.record(SENT)
                return admitted_at
        return None

    async def main() -> None:
        for down in ("a", "b"):
            controls.for_recipient(down).circuit.open_until = 0.0
        async with asyncio.TaskGroup() as calls:
            to_down = [calls.create_task(call(down)) for down in ("a", "b") for _ in range(3)]
            await asyncio.sleep(0)
            to_well = calls.create_task(call("well"))
        assert [each.result() for each in to_down] == [0, None, None, 0, None, None]
        assert to_well.result() == 0

    run_virtually(main())


def test_calls_that_cannot_wait_are_refused_at_once_and_others_of_their_tenant_are_admitted() -> None:
    tenant = Quota("tenant", 4, waiting=2)
    controls = AdmissionByProvider("host", ProviderLimits(concurrency=1, provider_of=lambda recipient: recipient))
    refused: list[tuple[str, float]] = []

    async def call(recipient: str, seconds: float = 0.4) -> None:
        async with controls.for_recipient(recipient).admission(Call(recipient, 1, quotas=(tenant,))) as admission:
            if not isinstance(admission, Admission):
                refused.append((recipient, now()))
                return
            await asyncio.sleep(seconds)
            admission.record(SENT)

    async def main() -> None:
        controls.for_recipient("down").circuit.open_until = 0.5
        async with asyncio.TaskGroup() as calls:
            for recipient in ("busy", "busy", "down", "busy", "down", "well"):
                calls.create_task(call(recipient))
            await asyncio.sleep(0.1)
            # Only two may wait: a second one for the busy host, and one for the host that is down.
            assert refused == [("busy", 0), ("down", 0)]
            await asyncio.sleep(10)
            for _ in range(2):
                calls.create_task(call("hangs", seconds=60))
            await asyncio.sleep(5)
            assert refused[2:] == [("hangs", 11.1)]
            calls.create_task(call("hangs"))
            await asyncio.sleep(0.1)
            # The call in progress has taken so long that the next slot is not expected in time.
            assert refused[3:] == [("hangs", 15.1)]

    run_virtually(main())


def test_refused_calls_return_one_by_one_as_fast_as_slots_become_free() -> None:
    async def main() -> None:
        slots, quota = CallSlots(), Quota("host", 2)

        async def call() -> None:
            acquired_at = await slots.acquire((quota,))
            await asyncio.sleep(10)
            slots.release((quota,), acquired_at)

        async with asyncio.TaskGroup() as calls:
            for _ in range(2):
                calls.create_task(call())
            await asyncio.sleep(6)
            # A slot becomes free every three seconds or more, as far as is known now; twice as many calls return. The
            # times 1, 2.5, 4 … 11.5 are rounded down to the delays of the retry queues.
            assert [slots.return_in((quota,)) for _ in range(8)] == [1, 2, 4, 4, 4, 8, 8, 8]
            # None of them waits for hours if the host works again.
            assert max(slots.return_in((quota,)) for _ in range(100)) == LONGEST_WAIT

    run_virtually(main())


@pytest.mark.parametrize("stops", [False, True])
def test_waiting_calls_are_held_back_until_they_are_ready_again_or_the_sender_stops(stops: bool) -> None:
    async def main() -> None:
        caller, ready = Caller(ProviderLimits(concurrency=5, rate=10, rate_per_recipient=1)), asyncio.Event()
        ready.set()
        async with asyncio.TaskGroup() as calls:
            for number in range(30):
                calls.create_task(caller.call(f"chat {number % 15}", ready=ready))
            await asyncio.sleep(1.05)
            ready.clear()
            await asyncio.sleep(10)
            assert len(caller.admitted) == 11
            if stops:
                caller.control.stop()
            else:
                ready.set()
        times = sorted(time for times in caller.admitted.values() for time in times)
        assert len(times) == (11 if stops else 30)
        assert all(later - earlier >= 0.1 - 1e-3 for earlier, later in pairwise(times))

    run_virtually(main())


@pytest.mark.parametrize("steps", range(8))
def test_calls_that_are_held_back_for_a_moment_keep_their_order(steps: int) -> None:
    async def main() -> None:
        caller, ready = Caller(ProviderLimits(concurrency=20, rate=10)), asyncio.Event()
        ready.set()
        async with asyncio.TaskGroup() as calls:
            for number in range(20):
                calls.create_task(caller.call(f"chat {number:02}", ready=ready))
            await asyncio.sleep(0.55)
            ready.clear()
            await asyncio.sleep(0.05)  # meanwhile, the time of the next call comes
            for _ in range(steps):
                await asyncio.sleep(0)
            ready.set()
        assert list(caller.admitted) == [f"chat {number:02}" for number in range(20)]

    run_virtually(main())


def test_call_of_several_messages_holds_up_no_trial_of_a_shorter_call() -> None:
    async def main() -> None:
        control = AdmissionControl("a provider", ProviderLimits(concurrency=5))
        control.circuit.open_until = 0.0
        async with control.admission(Call("long", 60, further=LONG)) as trial:
            assert isinstance(trial, Admission)
            for _ in range(2):
                async with control.admission(Call("short", 0.5)) as admission:
                    assert isinstance(admission, Admission)
                    admission.record(SENT)
                assert not control.circuit.open

    run_virtually(main())


def test_calls_of_several_messages_make_one_trial_at_a_time() -> None:
    async def main() -> None:
        control = AdmissionControl("a provider", ProviderLimits(concurrency=5))
        control.circuit.open_until = 0.0
        async with control.admission(Call("long", 60, further=LONG)) as trial:
            assert isinstance(trial, Admission)
            async with control.admission(Call("other", 60, further=LONG)) as admission:
                assert isinstance(admission, NotAdmitted)
            assert now() == pytest.approx(60)
            trial.record(SENT)
        assert not control.circuit.open

    run_virtually(main())


def test_inconclusive_trial_does_not_open_a_circuit_that_has_closed_meanwhile() -> None:
    async def main() -> None:
        control = AdmissionControl("a provider", ProviderLimits(concurrency=5))
        async with control.admission(Call("first", 60)) as under_way:
            assert isinstance(under_way, Admission)
            control.circuit.open_until = 0.0
            async with control.admission(Call("trial", 60)) as trial:
                assert isinstance(trial, Admission)
                under_way.record(SENT)
                trial.record(TIMED_OUT)
        assert not control.circuit.open

    run_virtually(main())
