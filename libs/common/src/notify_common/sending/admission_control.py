"""Admission control for one provider: calls within its limits, and only trial calls while its circuit is open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from notify_common.sending.attempt import Decision
from notify_common.sending.call import Call, NotAdmitted
from notify_common.sending.call_slots import CallSlots, Quota
from notify_common.sending.circuit_breaker import CircuitBreaker
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.rate_limiter import LONGEST_TURN_WAIT, RateLimiter
from notify_common.sending.recipient_queues import RecipientQueues
from notify_common.sending.recipient_turns import RecipientTurns

CLOCK_ERROR = 0.001  # seconds by which a timer may be early


class AdmissionControl:
    """Admits calls to one provider in the order in which they arrive.

    If the circuit is closed, a slot is free, no rate limit is set, the provider does not throttle the recipient, and
    results can be reported, a call without a reserved turn is admitted at once. Otherwise, it waits for the following,
    in this order. What other calls could use in the meantime comes last.

    1. Its turn: by the recipient's rate limit, at the end of the recipient's throttling, or as reserved when it was
       refused before. A call whose turn is far away is refused.
    2. If recipients have a rate limit: the first place among the calls to its recipient that wait here.
    3. The time for the recipient's next call, which depends on the last one and on the provider's throttling.
    4. A closed circuit, or a trial that is due.
    5. A slot of each of its quotas for concurrent calls. If the circuit is open, the call now becomes the trial.
    6. The time for the provider's next call by its rate limit.

    The call starts again at 3 if, in the meantime, the circuit has opened, another call has become the trial, the
    recipient is throttled, or the call is held back because its result could not be reported.
    """

    def __init__(self, name: str, limits: ProviderLimits, slots: CallSlots | None = None) -> None:
        self._slots = CallSlots() if slots is None else slots
        self._quota = Quota(name, limits.concurrency)
        self._turns = RecipientTurns(limits.rate_per_recipient)
        self._queues = RecipientQueues()
        self._limiter = RateLimiter(1 / limits.rate) if limits.rate else None
        self._pacing = asyncio.Lock()
        self._retry_after = limits.retry_after.total_seconds()
        self.circuit = CircuitBreaker(name, self._turns, limits.connect_timeout)
        self._timeouts: set[asyncio.Timeout] = set()
        self._users = 0
        self.stopped = False

    @property
    def idle(self) -> bool:
        """True if a new object could replace this one without any loss."""
        open_until = self.circuit.open_until
        return not self._users and (open_until is None or open_until < _now())

    def stop(self) -> None:
        """Admit no further calls, and refuse the waiting ones at once."""
        self.stopped = True
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(0)

    @asynccontextmanager
    async def admission(self, call: Call) -> AsyncIterator["Admission | NotAdmitted"]:
        """Yield an admission for the call, or `NotAdmitted` if it may not be made now."""
        with ExitStack() as held:
            self._users += 1
            held.callback(self._leave)
            if self.stopped:
                yield self._refuse_late(call, reserved=call.turn_in is not None)
            else:
                yield await self._admit_before_deadline(held, call)

    async def _admit_before_deadline(self, held: ExitStack, call: Call) -> "Admission | NotAdmitted":
        """Wait for the call's turn, and then for all else that it needs, which it keeps until `held` is closed."""
        reserved, deadline = call.turn_in is not None, _now() + call.timeout
        with suppress(TimeoutError), ExitStack() as registered:
            async with asyncio.timeout(call.timeout) as waiting:
                self._timeouts.add(waiting)
                registered.callback(self._timeouts.discard, waiting)
                if not call.even_if_open and (self.circuit.open_until or 0) > deadline:
                    return self._refuse_late(call, reserved=reserved)  # no call will be admitted by then
                turn_in = self._reserve(call) if call.turn_in is None else call.turn_in
                if turn_in > min(call.timeout, LONGEST_TURN_WAIT):
                    return self._refuse_for(turn_in, reserved=True)
                reserved = self._turns.interval > 0
                if turn_in > 0:
                    await asyncio.sleep(turn_in)
                if not self._turns.interval:
                    return await self._retry_until_admitted(held, call, deadline)
                return await self._admit_in_queue(held, call, deadline)
        return self._refuse_late(call, reserved=reserved)

    async def _admit_in_queue(self, held: ExitStack, call: Call, deadline: float) -> "Admission | NotAdmitted":
        """Wait for the recipient's earlier calls. Many turns may come at once, for example after an outage."""
        ahead = self._queues.length(call.recipient) * self._turns.interval
        if ahead > LONGEST_TURN_WAIT:
            return self._refuse_for(self._reserve(call, ahead), reserved=True)
        if self._is_crowded(call, deadline):
            return self._refuse_late(call, reserved=True)
        async with AsyncExitStack() as queue:
            # The calls behind the first one count, too: they wait for the slot for which that one waits.
            with self._slots.waiting(call.quotas):
                await queue.enter_async_context(self._queues.head(call.recipient))
            return await self._retry_until_admitted(held, call, deadline)

    async def _retry_until_admitted(self, held: ExitStack, call: Call, deadline: float) -> "Admission | NotAdmitted":
        """Wait for the recipient and try to get the rest; start again if that fails."""
        while True:
            await call.until_ready()
            # A call waits for its recipient before it takes a slot, which others can use in the meantime.
            now = _now()
            wait = self._turns.next_call(call.recipient, now) - now
            if wait > LONGEST_TURN_WAIT:
                # A wait of more than one interval means that the recipient is throttled. Then it needs a new turn.
                return self._refuse_for(self._reserve(call) if wait > self._turns.interval else wait, reserved=True)
            if wait > 0:
                await asyncio.sleep(wait)
            if self._is_crowded(call, deadline):
                return self._refuse_late(call, reserved=self._turns.interval > 0)
            with ExitStack() as acquired:
                admission = await self._try_once(acquired, call, deadline)
                if admission is not None:
                    held.enter_context(acquired.pop_all())
                    return admission

    async def _try_once(self, acquired: ExitStack, call: Call, deadline: float) -> "Admission | NotAdmitted | None":
        """Wait for the circuit, the slots and the rate. Return None if the call must start again after these waits."""
        await self._acquire_slots(acquired, call)
        trial_number = None
        if self.circuit.open and not call.even_if_open:
            if not self.circuit.may_be_trial(call):
                return None  # while it waited for slots, the circuit has opened, or another call has become the trial
            trial_number = self.circuit.begin_trial(call, acquired)
        is_trial = trial_number is not None
        if self._limiter is not None:
            # The rate comes last, because a time that is redeemed too early would be wasted.
            refusal = await self._wait_for_rate(acquired, self._limiter, call, deadline, is_trial=is_trial)
            if refusal is not None:
                return refusal
        now = _now()
        if self.circuit.blocks(call, is_trial=is_trial) or not call.is_ready:
            return None
        latest = now + CLOCK_ERROR
        if self._turns.redeem(call.recipient, now, latest, further=call.further) > latest:
            return None  # the recipient has been throttled in the meantime
        return Admission(self.circuit, call.recipient, trial_number)

    async def _wait_for_rate(
        self, acquired: ExitStack, limiter: RateLimiter, call: Call, deadline: float, *, is_trial: bool
    ) -> NotAdmitted | None:
        """Wait for the next free time at which the call is ready, so that calls that are held back keep their order.

        Return the refusal of a call whose time comes too late. Without a refusal, the time has come, or the circuit has
        opened; the caller checks that.
        """
        arrived = _now()
        # Only one call at a time waits for the next free time, so a circuit that opens wastes no more than one.
        async with self._pacing:
            while True:
                if not call.is_ready:
                    await call.until_ready()
                    arrived = _now()
                if self.circuit.blocks(call, is_trial=is_trial):
                    return None
                now = _now()
                # A time that passed while the process was stopped is lost. Otherwise many calls would be made at once.
                at = limiter.redeem("", max(arrived, now - limiter.interval), deadline, further=call.further)
                if at > deadline:
                    return self._refuse_for(at - now, reserved=True)
                if call.further:
                    # The call ends early if its first message is rejected, for example because a user blocked the bot.
                    acquired.callback(lambda at: limiter.withdraw("", _now(), at, call.further), at)
                if at > now:
                    await asyncio.sleep(at - now)
                if call.is_ready:
                    return None

    def _quotas(self, call: Call) -> tuple[Quota, ...]:
        return (self._quota, *call.quotas)

    def _is_crowded(self, call: Call, deadline: float) -> bool:
        """Return True if the call must wait for the circuit or for a slot, but others of its tenant already do."""
        quotas, blocked = self._quotas(call), self.circuit.blocks(call, is_trial=self.circuit.may_be_trial(call))
        must_wait = blocked or self._slots.exhausted(quotas)
        return must_wait and self._slots.crowded(quotas, deadline - _now())

    async def _acquire_slots(self, acquired: ExitStack, call: Call) -> None:
        quotas = self._quotas(call)
        with self._slots.waiting(quotas):
            if not call.even_if_open:
                # A call waits for the circuit before it takes slots, which others of its tenant can use meanwhile.
                await self.circuit.closed_or_trial_due(call)
            acquired_at = await self._slots.acquire(quotas)
        acquired.callback(self._slots.release, quotas, acquired_at)

    def _refuse_late(self, call: Call, *, reserved: bool) -> NotAdmitted:
        """Return the refusal of a call that has waited too long, or would, or whose wait was ended by `stop`."""
        if self.stopped:
            wait = 0.0  # another sender may take the message at once
        elif self.circuit.open:
            pause = self._slots.pause(call.quotas)
            wait = self._retry_after if pause is None else pause
        else:
            wait = self._slots.return_in(self._quotas(call))
        return self._refuse_for(wait, reserved=reserved)

    def _refuse_for(self, wait: float, *, reserved: bool) -> NotAdmitted:
        return NotAdmitted(wait, reserved=reserved, circuit_open=self.circuit.open)

    def _reserve(self, call: Call, ahead: float = 0) -> float:
        """Reserve a turn at least `ahead` seconds after the recipient's next call; return the seconds until then.

        A call that expires before that time reserves nothing.
        """
        now = _now()
        earliest, messages = self._turns.next_call(call.recipient, now) + ahead, 1 + len(call.further)
        return self._turns.reserve(call.recipient, earliest, now + call.expires_in, messages=messages) - now

    def _leave(self) -> None:
        self._users -= 1


@dataclass(frozen=True)
class Admission:
    """Permission to make one call now."""

    circuit: CircuitBreaker
    recipient: str
    trial_number: int | None
    """None if the call is no trial."""

    def record(self, decision: Decision) -> None:
        """Report how the call ended."""
        # A trial that has ended in the meantime, because the circuit closed, counts like any other call.
        is_trial = self.circuit.trials.is_current(self.trial_number)
        self.circuit.record(decision, self.recipient, is_trial=is_trial)


def _now() -> float:
    return asyncio.get_running_loop().time()
