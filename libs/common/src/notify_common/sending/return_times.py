"""Decide when a call that found no free slot should try again, depending only on the given times."""

import math
from collections import OrderedDict
from dataclasses import dataclass

MAX_QUOTAS = 10_000
SHORTEST_WAIT = 1.0  # seconds
# This bounds the time that a receiver's backlog takes to notice that the receiver works again.
LONGEST_WAIT = 64.0  # seconds
SMOOTHING = 20  # calls
# More calls return than slots become free, because a slot must not stay free while others wait.
OVERBOOKING = 2.0
# A sender needs about a millisecond for each call that returns. A tenant whose receivers are down or hang may have a
# very large backlog, which must not occupy the sender.
RETURNS_PER_SECOND = 250.0  # of a tenant
LONGEST_PAUSE = 2048.0  # seconds; no call waits for hours if its receiver works again


@dataclass(slots=True)
class _Times:
    changed: float
    """When a slot was last taken or returned."""
    duration: float = 0.0
    """The average time that a call takes; too short for a quota that was not used before."""
    next_return: float = 0.0
    paused_until: float = 0.0
    """When all paused calls have returned, if `RETURNS_PER_SECOND` of them do."""


class ReturnTimes:
    """Lets the calls that wait for a quota return one by one, about as fast as its slots become free.

    If all of them returned every second, thousands of messages for one busy receiver would delay all other messages.
    """

    def __init__(self) -> None:
        self._quotas: OrderedDict[str, _Times] = OrderedDict()

    def taken(self, quota: str, now: float) -> None:
        """Note that a call took a slot of the quota."""
        self._times(quota, now).changed = now

    def returned(self, quota: str, now: float, duration: float) -> None:
        """Note that a call that took `duration` seconds returned its slot."""
        times = self._times(quota, now)
        times.changed = now
        times.duration += (duration - times.duration) / SMOOTHING

    def seconds_per_slot(self, quota: str, calls: int, now: float) -> float:
        """Return the average time until one of the quota's slots becomes free, while all `calls` slots are taken."""
        times = self._times(quota, now)
        # The second term covers calls that hang, and so have no duration yet.
        return max(times.duration, now - times.changed) / calls

    def reserve(self, quota: str, calls: int, now: float) -> float:
        """Return how many seconds a call should wait until it tries again."""
        times = self._times(quota, now)
        at = min(max(now + SHORTEST_WAIT, times.next_return), now + LONGEST_WAIT)
        times.next_return = at + self.seconds_per_slot(quota, calls, now) / OVERBOOKING
        return _rounded_down(at - now)

    def pause(self, quota: str, now: float) -> float | None:
        """Count a call that probably cannot be made soon.

        Return how many seconds it should wait if, after a shorter time, too many calls of the quota would return; else
        return None.
        """
        times = self._times(quota, now)
        # The limit lets the waits become short again soon after the receivers of a very large backlog work again.
        times.paused_until = min(max(now, times.paused_until) + 1 / RETURNS_PER_SECOND, now + 2 * LONGEST_PAUSE)
        wait = times.paused_until - now
        return None if wait < LONGEST_WAIT else min(_rounded_down(wait), LONGEST_PAUSE)

    def _times(self, quota: str, now: float) -> _Times:
        times = self._quotas.get(quota)
        if times is None:
            times = self._quotas[quota] = _Times(now)
            if len(self._quotas) > MAX_QUOTAS:
                self._quotas.popitem(last=False)
        self._quotas.move_to_end(quota)
        return times


def _rounded_down(seconds: float) -> float:
    """Return a power of two, because a message would pass through several retry queues for other times."""
    return 2.0 ** math.floor(math.log2(seconds))
