"""When the next attempt is made, and on which rung of the ladder of retry queues it waits."""

from collections.abc import Sequence
from datetime import timedelta

LONGEST_DELAY = timedelta(hours=1)
MAX_WAIT = timedelta(hours=24)
SLACK = 1.05  # of a wait


class RetrySchedule:
    """Delays that double from `first_delay` to an hour, for at most `max_attempts` failures a round.

    What is not the delivery's fault uses none of them, for at most `max_wait`.
    """

    def __init__(self, *, first_delay: timedelta, max_attempts: int, max_wait: timedelta = MAX_WAIT) -> None:
        self._max_attempts = max_attempts
        self.max_wait = max_wait
        ladder = [first_delay]
        # No two rungs so close that one wait could take either.
        while ladder[-1] * SLACK < LONGEST_DELAY:
            doubled = ladder[-1] * 2
            ladder.append(doubled if doubled * SLACK < LONGEST_DELAY else LONGEST_DELAY)
        self.ladder: Sequence[timedelta] = tuple(ladder)

    def exhausted(self, failures: int) -> bool:
        """Whether the round's budget is used up."""
        return failures >= self._max_attempts

    def delay_after(self, failures: int) -> timedelta:
        """How long to wait after the round's `failures`-th failure (from 1)."""
        return self.ladder[min(failures, len(self.ladder)) - 1]

    def rung_for(self, wait: timedelta) -> timedelta:
        """The longest rung not noticeably longer than `wait`, else the shortest.

        What comes out early is parked again. Without the slack, the few milliseconds that a message is under way
        would turn each wait of one rung into a walk down the whole ladder.
        """
        return max((rung for rung in self.ladder if rung <= wait * SLACK), default=self.ladder[0])
