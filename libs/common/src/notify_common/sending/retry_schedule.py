"""Decide when the next attempt is made, and in which retry queue it waits until then."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.rate_limiter import LONGEST_TURN_WAIT

LONGEST_DELAY = timedelta(hours=1)
MAX_WAIT = timedelta(hours=24)
TOLERANCE = 1.05  # a factor
LONGEST_EARLY_WAIT = timedelta(seconds=LONGEST_TURN_WAIT)


class RetrySchedule:
    """Delays that double from `first_delay` to an hour, for at most `max_attempts` failures per round.

    If `first_delay` is longer than a call waits for its turn in memory, there are also shorter delays, for messages
    whose turns come sooner.

    While a provider is unreachable or throttling, attempts do not count as failures, but end after `max_wait`.
    """

    def __init__(self, *, first_delay: timedelta, max_attempts: int, max_wait: timedelta = MAX_WAIT) -> None:
        self._max_attempts = max_attempts
        self.max_wait = max_wait
        backoffs = [first_delay]
        # If two delays were closer together than the tolerance, both of their queues would suit the same wait.
        while backoffs[-1] * TOLERANCE < LONGEST_DELAY:
            doubled = backoffs[-1] * 2
            backoffs.append(doubled if doubled * TOLERANCE < LONGEST_DELAY else LONGEST_DELAY)
        self._backoffs: Sequence[timedelta] = tuple(backoffs)
        # Without shorter delays, all turns within a long first delay would come together, and then miss their times.
        shorter: list[timedelta] = []
        while (shortest := shorter[-1] if shorter else first_delay) > LONGEST_EARLY_WAIT:
            shorter.append(shortest / 2)
        self.delays: Sequence[timedelta] = (*reversed(shorter), *backoffs)
        """The delays of the retry queues, in ascending order."""

    def exhausted(self, failures: int) -> bool:
        """Return whether the round's retry budget is used up."""
        return failures >= self._max_attempts

    def delay_after(self, failures: int) -> timedelta:
        """Return how long to wait after a failure; `failures` counts the round's failures, including this one."""
        return self._backoffs[min(failures, len(self._backoffs)) - 1]

    def queue_delay(
        self,
        wait: timedelta,
        *,
        exact: bool = False,
        latest: timedelta = timedelta.max,
        delays: Sequence[timedelta] | None = None,
    ) -> timedelta:
        """Return the longest delay that exceeds `wait` by no more than the tolerance, or else the shortest delay.

        `delays` limits the choice to some of the delays, in ascending order.

        A message that leaves its queue early is scheduled again. Without the tolerance, the few milliseconds in transit
        would make each wait a little too short for the intended queue, and so send the message through shorter ones.
        The tolerance does not exceed `latest`, when the delivery expires. An `exact` wait has no tolerance, because 5%
        of a long wait would be too late.
        """
        longest = wait if exact else max(wait, min(wait * TOLERANCE, latest))
        delays = self.delays if delays is None else delays
        return max((delay for delay in delays if delay <= longest), default=delays[0])


def due_at(request: DeliveryRequested) -> datetime | None:
    """Return when the message must be handled: for its attempt, or for its expiry if that comes first."""
    if request.not_before is None or request.expires_at is None:
        return request.not_before
    return min(request.not_before, request.expires_at)


def is_early(request: DeliveryRequested, now: datetime) -> bool:
    """Return whether the message must wait in a retry queue.

    It waits in a sender for the last seconds before a reserved turn.
    """
    due = due_at(request)
    return due is not None and due - now > (LONGEST_EARLY_WAIT if request.reserved else timedelta())
