"""Protect each provider behind a channel with a circuit breaker, a concurrency limit and rate limits."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from notify_common.contracts.messages import ErrorClass, Outcome
from notify_common.runtime.outage import Outage
from notify_common.sending.attempt import Decision
from notify_common.sending.errors import Throttled
from notify_common.sending.rate_limiter import RateLimiter

log = logging.getLogger(__name__)

OPENING = frozenset({ErrorClass.UNREACHABLE, ErrorClass.THROTTLED})
INCONCLUSIVE = frozenset({ErrorClass.TIMEOUT, ErrorClass.UNKNOWN})
MAX_BREAKERS = 10_000
LONGEST_OPEN = timedelta(seconds=30)  # even if the provider asks for more, which may concern only one recipient


@dataclass(frozen=True)
class ProviderLimits:
    """The limits for calls to a provider. A rate of 0 means that there is no limit."""

    concurrency: int
    """Concurrent calls."""
    rate: float = 0
    """Calls per second."""
    rate_per_recipient: float = 0
    """Calls per second to one recipient."""
    admission_timeout: timedelta = timedelta(minutes=2)
    """How long a message may occupy a worker while it waits to be admitted."""
    retry_after: timedelta = timedelta(seconds=30)
    """How long the message then waits in a retry queue if the circuit is open."""
    provider_of: Callable[[str], str] = lambda _: ""
    """Returns the name of a recipient's provider, for channels with many providers."""


class CircuitBreaker:
    """Admits calls to one provider in the order in which they arrive.

    A call that finds the provider unreachable or throttling opens the circuit. While it is open, one trial call at a
    time is admitted, at growing intervals (half-open); the first trial that succeeds closes the circuit.
    """

    def __init__(self, name: str, limits: ProviderLimits) -> None:
        self._outage = Outage(log, f"{name} is unavailable")
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._limiter = RateLimiter(1 / limits.rate) if limits.rate else None
        self._recipient_limiter = RateLimiter(1 / limits.rate_per_recipient) if limits.rate_per_recipient else None
        self.open_until: float | None = None
        """When the next trial is due, on the loop's clock; None while the circuit is closed."""
        self._trial_running = False
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
    async def admission(
        self, recipient: str, timeout: float, *, even_if_open: bool = False
    ) -> AsyncIterator["Admission | None"]:
        """Yield an admission for one call, or None after `timeout` seconds; `even_if_open` ignores an open circuit."""
        with ExitStack() as held:
            self._users += 1
            held.callback(self._leave)
            admission = None
            if not self.stopped:
                with suppress(TimeoutError):
                    admission = await self._admit(held, recipient, timeout, even_if_open=even_if_open)
            if admission is None:
                held.close()  # release everything that was acquired before the timeout
            yield admission

    def record(self, decision: Decision, *, trial: bool) -> None:
        """Open or close the circuit, depending on how an admitted call ended."""
        result, failure = decision.result, decision.failure
        if result.outcome is Outcome.EXPIRED:
            return
        unavailable = result.error_class in OPENING and not (failure is not None and failure.of_recipient)
        if unavailable or (trial and result.error_class in INCONCLUSIVE):
            # Calls that were already in flight when the circuit opened carry no new information.
            if self.open_until is None or trial:
                retry_after = failure.retry_after if isinstance(failure, Throttled) else None
                requested = min(retry_after or timedelta(), LONGEST_OPEN)
                self.open_until = _now() + max(self._outage.failed(result.error_code), requested.total_seconds())
        elif result.error_class not in INCONCLUSIVE:
            self.open_until = None
            self._outage.ended()
            self._notify()

    async def _admit(self, held: ExitStack, recipient: str, timeout: float, *, even_if_open: bool) -> "Admission":
        """Acquire what the call needs until `held` is closed; raise `TimeoutError` after `timeout` seconds."""
        async with asyncio.timeout(timeout) as waiting:
            with ExitStack() as registered:
                self._timeouts.add(waiting)
                registered.callback(self._timeouts.discard, waiting)
                if not even_if_open and (self.open_until or 0) - _now() > timeout:
                    raise TimeoutError  # no call will be admitted by then
                await self._slots.acquire()
                held.callback(self._slots.release)
                trial = not even_if_open and await self._closed_or_trial()
                if trial:
                    held.callback(self._end_trial)
                # Rate limits come last, because a time that is reserved too early would be wasted.
                for limiter, key in ((self._recipient_limiter, recipient), (self._limiter, "")):
                    if limiter is not None:
                        await asyncio.sleep(limiter.reserve(key, _now(), (waiting.when() or 0) - _now()))
        return Admission(self, trial)

    async def _closed_or_trial(self) -> bool:
        """Wait until the call may be made. Return True if it is the trial, or False if the circuit is closed."""
        while self.open_until is not None:
            until_trial = None if self._trial_running else self.open_until - _now()
            if until_trial is not None and until_trial <= 0:
                self._trial_running = True
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(until_trial):
                    await self._changed.wait()
        return False

    def _end_trial(self) -> None:
        self._trial_running = False
        self._notify()

    def _leave(self) -> None:
        self._users -= 1

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(frozen=True)
class Admission:
    """Permission to make one call now."""

    breaker: CircuitBreaker
    trial: bool

    def record(self, decision: Decision) -> None:
        """Report how the call ended."""
        self.breaker.record(decision, trial=self.trial)


class CircuitBreakers:
    """One circuit breaker per provider behind a channel, so that one provider's outage does not delay the others."""

    def __init__(self, name: str, limits: ProviderLimits, *, max_breakers: int = MAX_BREAKERS) -> None:
        self._name = name
        self._max_breakers = max_breakers
        self.limits = limits
        self._breakers: dict[str, CircuitBreaker] = {}
        self._stopped = False

    def for_recipient(self, recipient: str) -> CircuitBreaker:
        """Return the circuit breaker for the recipient's provider."""
        provider = self.limits.provider_of(recipient)
        breaker = self._breakers.get(provider)
        if breaker is None:
            if len(self._breakers) >= self._max_breakers:
                self._breakers = {key: breaker for key, breaker in self._breakers.items() if not breaker.idle}
            breaker = self._breakers[provider] = CircuitBreaker(f"{self._name} {provider}".rstrip(), self.limits)
            breaker.stopped = self._stopped
        return breaker

    def stop(self) -> None:
        """Admit no further calls."""
        self._stopped = True
        for breaker in self._breakers.values():
            breaker.stop()


def _now() -> float:
    return asyncio.get_running_loop().time()
