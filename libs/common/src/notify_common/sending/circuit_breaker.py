"""Protect a provider behind a channel with a circuit breaker, a concurrency limit and rate limits."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from notify_common.contracts.messages import ErrorClass, Outcome
from notify_common.runtime.outage import Outage
from notify_common.sending.attempt import Decision
from notify_common.sending.call import Call, NotAdmitted
from notify_common.sending.call_slots import CallSlots, Quota
from notify_common.sending.errors import Throttled
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.rate_limiter import LONGEST_TURN_WAIT, RateLimiter
from notify_common.sending.recipient_lanes import RecipientLanes
from notify_common.sending.recipient_turns import RecipientTurns
from notify_common.sending.trial_calls import TrialCalls

log = logging.getLogger(__name__)

OPENING = frozenset({ErrorClass.UNREACHABLE, ErrorClass.THROTTLED})
INCONCLUSIVE = frozenset({ErrorClass.TIMEOUT, ErrorClass.UNKNOWN})
LONGEST_OPEN = timedelta(seconds=30)  # even if the provider asks for more, which may concern only one recipient
SHORTEST_THROTTLING = timedelta(seconds=1)  # if the provider does not say how long to wait
CLOCK_ERROR = 0.001  # seconds by which a timer may be early


class CircuitBreaker:
    """Admits calls to one provider in the order in which they arrive.

    A call that finds the provider unreachable or throttling opens the circuit. While it is open, one trial call at a
    time is admitted, and one of several messages, at growing intervals (half-open). The first trial that succeeds
    closes the circuit. If the limits have a `connect_timeout`, a trial that has a connection is enough.
    """

    def __init__(self, name: str, limits: ProviderLimits, slots: CallSlots | None = None) -> None:
        self._outage = Outage(log, f"{name} is unavailable")
        self._slots = CallSlots() if slots is None else slots
        self._quota = Quota(name, limits.concurrency)
        self._turns = RecipientTurns(limits.rate_per_recipient)
        self._lanes = RecipientLanes()
        self._limiter = RateLimiter(1 / limits.rate) if limits.rate else None
        self._pacing = asyncio.Lock()
        self._connect_timeout = limits.connect_timeout
        self.trials = TrialCalls(limits.connect_timeout, self._close, self._notify)
        self.open_until: float | None = None
        """When the next trial is due, on the loop's clock; None while the circuit is closed."""
        self._changed = asyncio.Event()
        self._timeouts: set[asyncio.Timeout] = set()
        self._users = 0
        self.stopped = False

    @property
    def open(self) -> bool:
        """True if the circuit is open or half-open."""
        return self.open_until is not None

    @property
    def idle(self) -> bool:
        """True if a new circuit breaker could replace this one without any loss."""
        return not self._users and (self.open_until is None or self.open_until < _now())

    def stop(self) -> None:
        """Admit no further calls, and reject the waiting ones at once."""
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
            reserved = call.turn_in is not None
            yield NotAdmitted(reserved=reserved) if self.stopped else await self._admit(held, call)

    def record(self, decision: Decision, recipient: str, *, trial: bool) -> None:
        """Open or close the circuit, depending on how an admitted call ended."""
        result, failure = decision.result, decision.failure
        if result.outcome is Outcome.EXPIRED:
            return
        retry_after = failure.retry_after if isinstance(failure, Throttled) else None
        if isinstance(failure, Throttled) and failure.scope_unknown:
            if not self._throttle(recipient, failure):
                return  # this shows neither an outage nor a recovery, so another call may be the next trial
            retry_after = None  # it may concern only these recipients, and a trial call will soon show more
        unavailable = result.error_class in OPENING and not (failure is not None and failure.of_recipient)
        inconclusive = result.error_class in INCONCLUSIVE
        if unavailable or (trial and inconclusive and self._connect_timeout is None):
            # Calls that were already in flight when the circuit opened carry no new information.
            if self.open_until is None or trial:
                requested = min(retry_after or timedelta(), LONGEST_OPEN)
                self.open_until = _now() + max(self._outage.failed(result.error_code), requested.total_seconds())
        elif trial or not inconclusive:
            self._turns.served(recipient, _now())
            self._close()

    def _close(self) -> None:
        self.open_until = None
        self.trials.end()
        self._outage.ended()
        self._notify()

    def _throttle(self, recipient: str, failure: Throttled) -> bool:
        """Hold back the recipient; return True if all recipients seem to be throttled."""
        now = _now()
        return self._turns.throttle(recipient, now, now + (failure.retry_after or SHORTEST_THROTTLING).total_seconds())

    async def _admit(self, held: ExitStack, call: Call) -> "Admission | NotAdmitted":
        """Wait for everything that the call needs, and keep it until `held` is closed."""
        reserved, deadline = call.turn_in is not None, _now() + call.timeout
        with suppress(TimeoutError), ExitStack() as registered:
            async with asyncio.timeout(call.timeout) as waiting:
                self._timeouts.add(waiting)
                registered.callback(self._timeouts.discard, waiting)
                if not call.even_if_open and (self.open_until or 0) > deadline:
                    return self._busy(call, reserved=reserved)  # no call will be admitted by then
                turn_in = self._reserve(call) if call.turn_in is None else call.turn_in
                if turn_in > min(call.timeout, LONGEST_TURN_WAIT):
                    return NotAdmitted(turn_in, reserved=True)
                reserved = self._turns.interval > 0
                if turn_in > 0:
                    await asyncio.sleep(turn_in)
                if not self._turns.interval:
                    return await self._admit_next(held, call, deadline)
                return await self._admit_in_turn(held, call, deadline)
        return self._busy(call, reserved=reserved)

    async def _admit_in_turn(self, held: ExitStack, call: Call, deadline: float) -> "Admission | NotAdmitted":
        """Wait for the recipient's earlier calls. Many turns may come at once, for example after an outage."""
        ahead = self._lanes.length(call.recipient) * self._turns.interval
        if ahead > LONGEST_TURN_WAIT:
            return NotAdmitted(self._reserve(call, ahead), reserved=True)
        if self._is_crowded(call, deadline):
            return self._busy(call, reserved=True)
        async with AsyncExitStack() as lane:
            # The calls behind the first one count, too: they wait for the slot for which that one waits.
            with self._slots.waiting(call.quotas):
                await lane.enter_async_context(self._lanes.first(call.recipient))
            return await self._admit_next(held, call, deadline)

    async def _admit_next(self, held: ExitStack, call: Call, deadline: float) -> "Admission | NotAdmitted":
        while True:
            await call.until_ready()
            # A call waits for its recipient before it takes a slot, which others can use in the meantime.
            now = _now()
            wait = self._turns.next_call(call.recipient, now) - now
            if wait > LONGEST_TURN_WAIT:
                # A wait of more than one interval means that the recipient is throttled. Then it needs a new turn.
                return NotAdmitted(self._reserve(call) if wait > self._turns.interval else wait, reserved=True)
            if wait > 0:
                await asyncio.sleep(wait)
            if self._is_crowded(call, deadline):
                return self._busy(call, reserved=self._turns.interval > 0)
            with ExitStack() as acquired:
                admission = await self._try_to_admit(acquired, call, deadline)
                if admission is not None:
                    held.enter_context(acquired.pop_all())
                    return admission

    async def _try_to_admit(self, acquired: ExitStack, call: Call, deadline: float) -> "Admission | NotAdmitted | None":
        """Acquire what the call needs; return None if the call may not be made after all, and must start again."""
        await self._acquire_slots(acquired, call)
        trial = 0
        if self.open and not call.even_if_open:
            if not self._trial_due(call):
                return None
            trial = self.trials.begin(acquired, several=bool(call.further))
        # Rate limits come last, because a time that is redeemed too early would be wasted.
        if self._limiter is not None:
            arrived = _now()
            # Only one call at a time waits for the next free time, so a circuit that opens wastes no more than one.
            async with self._pacing:
                refusal = await self._wait_for_rate(acquired, self._limiter, call, arrived, deadline, trial=trial > 0)
            if refusal is not None:
                return refusal
        now = _now()
        if self._waits_for_circuit(call, trial=trial > 0) or not call.is_ready:
            return None
        if self._turns.redeem(call.recipient, now, latest := now + CLOCK_ERROR, further=call.further) > latest:
            return None  # the recipient has been throttled in the meantime
        return Admission(self, call.recipient, trial)

    async def _wait_for_rate(
        self, acquired: ExitStack, limiter: RateLimiter, call: Call, arrived: float, deadline: float, *, trial: bool
    ) -> NotAdmitted | None:
        """Wait for the next free time at which the call is ready, so that calls that are held back keep their order."""
        while True:
            if not call.is_ready:
                await call.until_ready()
                arrived = _now()
            if self._waits_for_circuit(call, trial=trial):
                return None
            now = _now()
            # A time that passed while the process was stopped is lost. Otherwise many calls would be made at once.
            at = limiter.redeem("", max(arrived, now - limiter.interval), deadline, further=call.further)
            if at > deadline:
                return NotAdmitted(at - now, reserved=True)
            if call.further:
                # If the first message is rejected, for example by a chat that has blocked the bot, the call ends early.
                acquired.callback(lambda at: limiter.withdraw("", _now(), at, call.further), at)
            if at > now:
                await asyncio.sleep(at - now)
            if call.is_ready:
                return None

    def _quotas(self, call: Call) -> tuple[Quota, ...]:
        return (self._quota, *call.quotas)

    def _is_crowded(self, call: Call, deadline: float) -> bool:
        """Return True if the call must wait for the circuit or for a slot, but others of its tenant already do."""
        quotas, waits_for_circuit = self._quotas(call), self._waits_for_circuit(call, trial=self._trial_due(call))
        must_wait = waits_for_circuit or self._slots.exhausted(quotas)
        return must_wait and self._slots.crowded(quotas, deadline - _now())

    async def _acquire_slots(self, acquired: ExitStack, call: Call) -> None:
        quotas = self._quotas(call)
        with self._slots.waiting(quotas):
            if not call.even_if_open:
                # A call waits for the circuit before it takes slots, which others of its tenant can use meanwhile.
                await self._closed_or_trial_due(call)
            acquired_at = await self._slots.acquire(quotas)
        acquired.callback(self._slots.release, quotas, acquired_at)

    def _busy(self, call: Call, *, reserved: bool) -> NotAdmitted:
        """Return the refusal of a call that has waited too long, or would."""
        if self.open or self.stopped:
            return NotAdmitted(None if self.stopped else self._slots.pause(call.quotas), reserved=reserved)
        return NotAdmitted(self._slots.return_in(self._quotas(call)), reserved=reserved)

    def _waits_for_circuit(self, call: Call, *, trial: bool) -> bool:
        return self.open and not (trial or call.even_if_open)

    def _reserve(self, call: Call, ahead: float = 0) -> float:
        """Reserve a turn at least `ahead` seconds after the recipient's next call; return the seconds until then.

        A call that expires before that time reserves nothing.
        """
        now = _now()
        earliest, messages = self._turns.next_call(call.recipient, now) + ahead, 1 + len(call.further)
        return self._turns.reserve(call.recipient, earliest, now + call.expires_in, messages=messages) - now

    async def _closed_or_trial_due(self, call: Call) -> None:
        """Wait until the circuit is closed or the call may be a trial."""
        while self.open_until is not None and not self._trial_due(call):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if self._trial_runs(call) else self.open_until):
                    await self._changed.wait()

    def _trial_due(self, call: Call) -> bool:
        """Return True if the circuit is open and the call may be the next trial."""
        return self.open_until is not None and not self._trial_runs(call) and self.open_until <= _now()

    def _trial_runs(self, call: Call) -> bool:
        return self.trials.running(several=bool(call.further))

    def _leave(self) -> None:
        self._users -= 1

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(frozen=True)
class Admission:
    """Permission to make one call now."""

    breaker: CircuitBreaker
    recipient: str
    trial: int
    """The number of the trial call, or 0 for any other call."""

    def record(self, decision: Decision) -> None:
        """Report how the call ended."""
        self.breaker.record(decision, self.recipient, trial=self.breaker.trials.is_running(self.trial))


def _now() -> float:
    return asyncio.get_running_loop().time()
