"""Protects a provider: no more calls at once and no faster than it takes, and one probe at a time while it is down."""

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

log = logging.getLogger(__name__)

CLOSING = frozenset({ErrorClass.UNREACHABLE, ErrorClass.THROTTLED})
UNCLEAR = frozenset({ErrorClass.TIMEOUT, ErrorClass.UNKNOWN})
REMEMBERED_RECIPIENTS = 10_000
REMEMBERED_PROVIDERS = 10_000
LONGEST_CLOSED = timedelta(seconds=30)  # at a time: what asks for more may mean one recipient only
LONGEST_PACE = 5.0  # seconds that a call waits in its slot for its turn; who would wait longer is not admitted


@dataclass(frozen=True)
class ProviderLimits:
    """What a provider takes; a rate of 0: it has no such limit."""

    concurrency: int
    """Calls at once."""
    rate: float = 0
    """Calls a second."""
    rate_per_recipient: float = 0
    """Calls a second to one recipient."""
    patience: timedelta = timedelta(minutes=2)
    """How long a message waits in a worker's hand for its turn."""
    parked: timedelta = timedelta(seconds=30)
    """How long it then waits in a retry queue, if the provider is not to be had."""
    provider_of: Callable[[str], str] = lambda _: ""
    """Whose limits a recipient comes under, where a channel has many providers."""


class RateLimiter:
    """Keeps calls with the same key `interval` seconds apart."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next: dict[str, float] = {}

    def reserve(self, key: str, now: float, patience: float) -> float:
        """Take the next free time; seconds until then. Raises `TimeoutError` where that is too far off."""
        at = max(now, self._next.get(key, now))
        if at - now > min(patience, LONGEST_PACE):
            raise TimeoutError
        if len(self._next) >= REMEMBERED_RECIPIENTS:
            self._next = {key: next_ for key, next_ in self._next.items() if next_ > now}
        self._next[key] = at + self._interval
        return at - now


class CircuitBreaker:
    """Lets calls through in the order in which they come.

    The first that finds the provider unreachable or throttling closes the gate. From then on one call at a time is let
    through, as a probe, ever more seldom; the first that finds the provider well opens it for all.
    """

    def __init__(self, name: str, limits: ProviderLimits) -> None:
        self._outage = Outage(log, f"{name} is not to be had")
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._pace = RateLimiter(1 / limits.rate) if limits.rate else None
        self._pace_of_recipient = RateLimiter(1 / limits.rate_per_recipient) if limits.rate_per_recipient else None
        self.closed_until: float | None = None
        """On the loop's clock; None while it is open."""
        self._probing = False
        self._changed = asyncio.Event()
        self._waits: set[asyncio.Timeout] = set()
        self._inside = 0
        self.stopped = False

    @property
    def closed(self) -> bool:
        """Whether the provider was found not to be had."""
        return self.closed_until is not None

    @property
    def idle(self) -> bool:
        """Whether a new gate would do as well."""
        return not self._inside and (self.closed_until is None or self.closed_until < _now())

    def stop(self) -> None:
        """Admit nobody any more; who waits is sent away."""
        self.stopped = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    @asynccontextmanager
    async def admitted(
        self, recipient: str, patience: float, *, even_closed: bool = False
    ) -> AsyncIterator["Admission | None"]:
        """An admission for one call, or None after `patience` seconds without one."""
        with ExitStack() as held:
            self._inside += 1
            held.callback(self._leave)
            admission = None
            if not self.stopped:
                with suppress(TimeoutError):
                    admission = await self._enter(held, recipient, patience, even_closed=even_closed)
            if admission is None:
                held.close()  # whatever was taken until the patience was over
            yield admission

    def _leave(self) -> None:
        self._inside -= 1

    def saw(self, decision: Decision, *, probing: bool) -> None:
        """Open or close by how a call ended that was let through."""
        result, failure = decision.result, decision.failure
        if result.outcome is Outcome.EXPIRED:
            return
        says_closed = result.error_class in CLOSING and not (failure is not None and failure.of_recipient)
        if says_closed or (probing and result.error_class in UNCLEAR):
            # Others that were under way when it was closed say nothing new.
            if self.closed_until is None or probing:
                retry_after = failure.retry_after if isinstance(failure, Throttled) else None
                asked = min(retry_after or timedelta(), LONGEST_CLOSED)
                self.closed_until = _now() + max(self._outage.failed(result.error_code), asked.total_seconds())
        elif result.error_class not in UNCLEAR:
            self.closed_until = None
            self._outage.ended()
            self._tell()

    async def _enter(self, held: ExitStack, recipient: str, patience: float, *, even_closed: bool) -> "Admission":
        """What is taken for the call is given back when `held` is closed; raises `TimeoutError`."""
        async with asyncio.timeout(patience) as wait:
            with ExitStack() as waiting:
                self._waits.add(wait)
                waiting.callback(self._waits.discard, wait)
                if not even_closed and (self.closed_until or 0) - _now() > patience:
                    raise TimeoutError  # nobody will be let in by then
                await self._slots.acquire()
                held.callback(self._slots.release)
                probing = not even_closed and await self._opened_or_probe()
                if probing:
                    held.callback(self._end_probe)
                # At the last moment: what is reserved is used.
                for pacer, key in ((self._pace_of_recipient, recipient), (self._pace, "")):
                    if pacer is not None:
                        await asyncio.sleep(pacer.reserve(key, _now(), (wait.when() or 0) - _now()))
        return Admission(self, probing)

    async def _opened_or_probe(self) -> bool:
        """Return when the gate is open (False), or when it is this call's turn to be the probe (True)."""
        while self.closed_until is not None:
            until_probe = None if self._probing else self.closed_until - _now()
            if until_probe is not None and until_probe <= 0:
                self._probing = True
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(until_probe):
                    await self._changed.wait()
        return False

    def _end_probe(self) -> None:
        self._probing = False
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(frozen=True)
class Admission:
    """One call that may be made now."""

    gate: CircuitBreaker
    probing: bool

    def saw(self, decision: Decision) -> None:
        """Tell the gate how the call ended."""
        self.gate.saw(decision, probing=self.probing)


class CircuitBreakers:
    """One gate for each provider behind a channel: those that are well do not wait for those that are not."""

    def __init__(self, name: str, limits: ProviderLimits, *, remembered: int = REMEMBERED_PROVIDERS) -> None:
        self._name = name
        self._remembered = remembered
        self.limits = limits
        self._gates: dict[str, CircuitBreaker] = {}
        self._stopped = False

    def of(self, recipient: str) -> CircuitBreaker:
        """The gate before the provider of `recipient`."""
        provider = self.limits.provider_of(recipient)
        gate = self._gates.get(provider)
        if gate is None:
            if len(self._gates) >= self._remembered:
                self._gates = {key: gate for key, gate in self._gates.items() if not gate.idle}
            gate = self._gates[provider] = CircuitBreaker(f"{self._name} {provider}".rstrip(), self.limits)
            gate.stopped = self._stopped
        return gate

    def stop(self) -> None:
        """Admit nobody any more."""
        self._stopped = True
        for gate in self._gates.values():
            gate.stop()


def _now() -> float:
    return asyncio.get_running_loop().time()
