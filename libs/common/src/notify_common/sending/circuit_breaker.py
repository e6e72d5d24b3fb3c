"""The circuit breaker of one provider: it notices an outage, and finds out by trial calls when the outage is over."""

import asyncio
import logging
from contextlib import ExitStack, suppress
from datetime import timedelta

from notify_common.contracts.messages import ErrorClass, Outcome
from notify_common.runtime.outage import Outage
from notify_common.sending.attempt import Decision
from notify_common.sending.call import Call
from notify_common.sending.errors import Throttled
from notify_common.sending.recipient_turns import RecipientTurns
from notify_common.sending.trial_calls import TrialCalls

log = logging.getLogger(__name__)

OPENING = frozenset({ErrorClass.UNREACHABLE, ErrorClass.THROTTLED})
INCONCLUSIVE = frozenset({ErrorClass.TIMEOUT, ErrorClass.UNKNOWN})
LONGEST_OPEN = timedelta(seconds=30)  # even if the provider asks for more, which may concern only one recipient
SHORTEST_THROTTLING = timedelta(seconds=1)  # if the provider does not say how long to wait


class CircuitBreaker:
    """Knows whether calls to the provider make sense now, from how earlier calls ended.

    A call that finds the provider unreachable or throttling opens the circuit, unless that concerns only its recipient.
    If the provider does not say whether it throttles only this recipient (`scope_unknown`), the circuit opens once
    another recipient is throttled, too, and none has been served in between.

    While the circuit is open, trial calls are made at growing intervals (half-open): at most one at a time, plus one
    that sends several messages. Any call that finds the provider available closes the circuit, even if it is no trial,
    or the provider rejects its message. With a `connect_timeout`, it is enough that a trial has a connection.
    """

    def __init__(self, name: str, turns: RecipientTurns, connect_timeout: timedelta | None) -> None:
        self._outage = Outage(log, f"{name} is unavailable")
        self._turns = turns
        self._connect_timeout = connect_timeout
        self.trials = TrialCalls(connect_timeout, self._close, self._notify)
        self.open_until: float | None = None
        """When the next trial is due, on the loop's clock; None while the circuit is closed."""
        self._changed = asyncio.Event()

    @property
    def open(self) -> bool:
        """True if the circuit is open or half-open."""
        return self.open_until is not None

    def blocks(self, call: Call, *, is_trial: bool) -> bool:
        """Return True if the call may not be made while the circuit is as it is."""
        return self.open and not (is_trial or call.even_if_open)

    def may_be_trial(self, call: Call) -> bool:
        """Return True if the circuit is open, a trial is due, and the call may be that trial."""
        return self.open_until is not None and not self._trial_is_running(call) and self.open_until <= _now()

    async def closed_or_trial_due(self, call: Call) -> None:
        """Wait until the circuit is closed or the call may be a trial."""
        while self.open_until is not None and not self.may_be_trial(call):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if self._trial_is_running(call) else self.open_until):
                    await self._changed.wait()

    def begin_trial(self, call: Call, acquired: ExitStack) -> int:
        """Return the number of the trial that the call makes, which runs until `acquired` is closed."""
        return self.trials.begin(acquired, several=bool(call.further))

    def record(self, decision: Decision, recipient: str, *, is_trial: bool) -> None:
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
        if unavailable or (is_trial and inconclusive and self._connect_timeout is None):
            # Calls that were already in flight when the circuit opened carry no new information.
            if self.open_until is None or is_trial:
                requested = min(retry_after or timedelta(), LONGEST_OPEN)
                self.open_until = _now() + max(self._outage.failed(result.error_code), requested.total_seconds())
        elif is_trial or not inconclusive:
            self._turns.served(recipient, _now())
            self._close()

    def _throttle(self, recipient: str, failure: Throttled) -> bool:
        """Hold back the recipient; return True if all recipients seem to be throttled."""
        now = _now()
        return self._turns.throttle(recipient, now, now + (failure.retry_after or SHORTEST_THROTTLING).total_seconds())

    def _close(self) -> None:
        self.open_until = None
        self.trials.end_all()
        self._outage.ended()
        self._notify()

    def _trial_is_running(self, call: Call) -> bool:
        return self.trials.is_running(several=bool(call.further))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _now() -> float:
    return asyncio.get_running_loop().time()
