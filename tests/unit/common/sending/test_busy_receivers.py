"""How long webhooks wait while a receiver is busy: a simulation of one sender and its queues, on a virtual clock."""

import asyncio
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heapify, heapreplace
from uuid import UUID

import pytest
from notify_common.contracts.messages import DeliveryResult, Outcome
from notify_common.sending.admission_by_provider import AdmissionByProvider
from notify_common.sending.admission_control import Admission, AdmissionControl
from notify_common.sending.attempt import Decision
from notify_common.sending.call import Call, NotAdmitted
from notify_common.sending.call_slots import Quota
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.retry_schedule import RetrySchedule
from notify_common.sending.return_times import LONGEST_PAUSE, ReturnTimes
from support.virtual_clock import run_virtually

PREFETCH, CALLS_PER_HOST, CALLS_PER_TENANT = 500, 20, 250
BACKLOG, LARGE_BACKLOG = 3000, 25_000
PROCESSOR_TIME = 0.0005  # seconds that a sender needs for a message
TIMEOUT, FAST = 30.0, 0.05  # seconds of a call
FULL_SPEED = CALLS_PER_HOST / FAST  # calls per second
NOW = datetime(2026, 1, 2, tzinfo=UTC)
SENT = Decision(
    DeliveryResult(
        delivery_id=UUID(int=1), round=1, attempt=1, failures=0, outcome=Outcome.SENT, started_at=NOW, finished_at=NOW
    )
)


@dataclass
class Webhook:
    tenant: str
    host: str
    posted: float
    due: float = 0.0


@dataclass
class Sender:
    """A sender that holds up to `PREFETCH` messages of its queue. Postponed ones wait in retry queues."""

    duration: Callable[[str], float]
    """Returns how long a call to a host takes."""
    queue: asyncio.Queue[Webhook] = field(default_factory=asyncio.Queue)
    handled: int = 0
    delays: list[tuple[str, float, float]] = field(default_factory=list)
    """For each call: its host, when it began, and how long it had to wait for that."""

    def __post_init__(self) -> None:
        limits = ProviderLimits(
            CALLS_PER_HOST, admission_timeout=timedelta(seconds=1), provider_of=lambda recipient: recipient
        )
        self._controls = AdmissionByProvider("host", limits)
        self._schedule = RetrySchedule(first_delay=timedelta(seconds=1), max_attempts=3)
        self._processor = asyncio.Lock()
        self.workers = [asyncio.create_task(self._work()) for _ in range(PREFETCH)]

    def post(self, tenant: str, host: str) -> None:
        self.queue.put_nowait(Webhook(tenant, host, now()))

    async def _work(self) -> None:
        while True:
            webhook = await self.queue.get()
            self.handled += 1
            async with self._processor:
                await asyncio.sleep(PROCESSOR_TIME)
            if webhook.due <= now():
                await self._call(webhook)
            else:
                self._delay(webhook)

    async def _call(self, webhook: Webhook) -> None:
        quotas = (Quota(webhook.tenant, CALLS_PER_TENANT, waiting=PREFETCH // 3),)
        control = self._controls.for_recipient(webhook.host)
        async with control.admission(Call(webhook.host, 1, quotas=quotas)) as admission:
            if isinstance(admission, Admission):
                self.delays.append((webhook.host, now(), now() - webhook.posted))
                await asyncio.sleep(self.duration(webhook.host))
                admission.record(SENT)
                return
        webhook.due = now() + admission.wait
        self._delay(webhook)

    def _delay(self, webhook: Webhook) -> None:
        delay = self._schedule.queue_delay(timedelta(seconds=webhook.due - now())).total_seconds()
        asyncio.get_running_loop().call_later(delay, self.queue.put_nowait, webhook)

    async def watch(self, seconds: int) -> None:
        """Post a webhook of another tenant each second."""
        for _ in range(seconds):
            self.post("ours", "well")
            await asyncio.sleep(1)

    def longest_delay(self, host: str, since: float = 0, until: float = math.inf) -> float:
        return max(delay for to, began, delay in self.delays if to == host and since <= began < until)

    def stop(self) -> None:
        for worker in self.workers:
            worker.cancel()


def now() -> float:
    return asyncio.get_running_loop().time()


def test_hanging_host_does_not_delay_the_webhooks_of_another_tenant() -> None:
    async def main() -> None:
        sender = Sender(lambda host: TIMEOUT if host == "hangs" else FAST)
        for _ in range(BACKLOG):
            sender.post("theirs", "hangs")
        await sender.watch(60)
        handled = sender.handled
        await sender.watch(240)
        # Only the burst itself is ahead of the others, because the messages of one channel share a queue.
        assert sender.longest_delay("well") < BACKLOG * PROCESSOR_TIME * 2
        assert sender.longest_delay("well", since=20) < 1
        assert (sender.handled - handled) / 240 < BACKLOG / 40
        sender.stop()

    run_virtually(main())


def test_many_hanging_hosts_of_a_tenant_leave_room_for_the_others() -> None:
    async def main() -> None:
        sender = Sender(lambda host: FAST if host == "well" else TIMEOUT)
        for number in range(BACKLOG):
            sender.post("theirs", f"hangs {number % 1000}")
        await sender.watch(60)
        assert sender.longest_delay("well") < BACKLOG * PROCESSOR_TIME * 2
        assert sender.longest_delay("well", since=20) < 1
        sender.stop()

    run_virtually(main())


@pytest.mark.parametrize("backlog", [1000, 4000])
def test_busy_host_that_works_is_served_at_full_speed(backlog: int) -> None:
    async def main() -> None:
        sender = Sender(lambda _: FAST)
        for _ in range(backlog):
            sender.post("theirs", "busy")
        watching = asyncio.create_task(sender.watch(120))
        await asyncio.sleep(backlog / FULL_SPEED * 1.5 + 3)
        assert sum(host == "busy" for host, _, _ in sender.delays) == backlog
        assert sender.longest_delay("well") < backlog * PROCESSOR_TIME * 2
        watching.cancel()
        sender.stop()

    run_virtually(main())


def test_host_that_works_again_is_served_within_minutes() -> None:
    async def main() -> None:
        sender = Sender(lambda host: TIMEOUT if host == "busy" and now() < 300 else FAST)
        for _ in range(BACKLOG):
            sender.post("theirs", "busy")
        await asyncio.sleep(300)
        assert sum(host == "busy" for host, _, _ in sender.delays) < BACKLOG / 4
        await asyncio.sleep(120)
        assert sum(host == "busy" for host, _, _ in sender.delays) == BACKLOG
        sender.stop()

    run_virtually(main())


@pytest.mark.parametrize("state", ["down", "hangs"])
def test_large_backlog_for_a_host_that_does_not_work_takes_a_quarter_of_a_sender(state: str) -> None:
    """A sender can handle a thousand messages per second."""

    async def main() -> None:
        limits = ProviderLimits(CALLS_PER_HOST, admission_timeout=timedelta(seconds=1))
        control = AdmissionControl("host", limits)
        call = Call("", 1, quotas=(Quota("theirs", 1, waiting=0),))
        due, handled, began = [0.0] * LARGE_BACKLOG, 0, 200.0
        heapify(due)
        async with AsyncExitStack() as calls:
            if state == "down":
                control.circuit.open_until = 10_000.0
            else:
                assert isinstance(await calls.enter_async_context(control.admission(call)), Admission)
            while due[0] < 2 * began:
                if due[0] > now():
                    await asyncio.sleep(due[0] - now())
                handled += now() >= began
                async with control.admission(call) as refusal:
                    assert isinstance(refusal, NotAdmitted)
                heapreplace(due, now() + refusal.wait)
        assert 100 < handled / began < 350

    run_virtually(main())


def test_backlog_of_any_size_makes_later_calls_wait_for_little_more_than_an_hour() -> None:
    times = ReturnTimes()
    for _ in range(1_500_000):
        times.pause("theirs", 0.0)
    assert times.pause("theirs", 0.0) == LONGEST_PAUSE
    assert times.pause("theirs", 2.1 * LONGEST_PAUSE) is None
