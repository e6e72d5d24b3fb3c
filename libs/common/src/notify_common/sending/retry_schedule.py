"""Decide when the next attempt is made, and in which retry queue it waits until then."""

from collections.abc import Sequence
from datetime import timedelta

LONGEST_DELAY = timedelta(hours=1)
MAX_WAIT = timedelta(hours=24)
TOLERANCE = 1.05  # a factor


class RetrySchedule:
    """Delays that double from `first_delay` to an hour, for at most `max_attempts` failures per round.

    While a provider is unreachable or throttling, attempts do not count as failures, but end after `max_wait`.
    """

    def __init__(self, *, first_delay: timedelta, max_attempts: int, max_wait: timedelta = MAX_WAIT) -> None:
        self._max_attempts = max_attempts
        self.max_wait = max_wait
        delays = [first_delay]
        # If two delays were closer together than the tolerance, both of their queues would suit the same wait.
        while delays[-1] * TOLERANCE < LONGEST_DELAY:
            doubled = delays[-1] * 2
            delays.append(doubled if doubled * TOLERANCE < LONGEST_DELAY else LONGEST_DELAY)
        self.delays: Sequence[timedelta] = tuple(delays)
        """The delays of the retry queues, in ascending order."""

    def exhausted(self, failures: int) -> bool:
        """Return whether the round's retry budget is used up."""
        return failures >= self._max_attempts

    def delay_after(self, failures: int) -> timedelta:
        """Return how long to wait after a failure; `failures` counts the round's failures, including this one."""
        return self.delays[min(failures, len(self.delays)) - 1]

    def queue_delay(self, wait: timedelta, *, exact: bool = False) -> timedelta:
        """Return the longest delay that exceeds `wait` by no more than the tolerance, or else the shortest delay.

        A message that leaves its queue early is scheduled again. Without the tolerance, the few milliseconds in transit
        would make each wait a little too short for the intended queue, and so send the message through shorter ones.
        An `exact` wait has no tolerance, because 5% of a long wait would be too late.
        """
        longest = wait if exact else wait * TOLERANCE
        return max((delay for delay in self.delays if delay <= longest), default=self.delays[0])
