"""Space calls evenly. The limiter has no clock: what it returns depends only on the times that it is given."""

import math
from collections import OrderedDict
from dataclasses import dataclass

MAX_KEYS = 10_000
# A call waits for its turn in memory for at most this long. If its turn is later, its message waits in a retry queue.
LONGEST_TURN_WAIT = 5.0  # seconds


@dataclass(slots=True)
class _Times:
    unreserved: float = -math.inf
    """The earliest time that is not reserved."""
    next_call: float = -math.inf
    """The earliest time for the next call: one interval after the last."""


class RateLimiter:
    """Keeps calls with the same key at least `interval` seconds apart.

    A call reserves a time, and redeems it when that time has come. Reservations may be far ahead, but a call that
    redeems one waits only for the last call, even if another process made its reservation.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._times: OrderedDict[str, _Times] = OrderedDict()

    def reserve(self, key: str, now: float, latest: float = math.inf) -> float:
        """Return the next free time, and reserve it unless it is later than `latest`."""
        times = self._times.get(key) or _Times()
        at = max(now, times.unreserved, times.next_call)
        if at <= latest:
            times.unreserved = at + self.interval
            self._remember(key, times)
        return at

    def next_call(self, key: str, now: float) -> float:
        """Return when the next call can be made."""
        times = self._times.get(key)
        return now if times is None else max(now, times.next_call)

    def redeem(self, key: str, now: float, latest: float = math.inf) -> float:
        """Return when the call can be made, and count it as made at that time unless that is later than `latest`."""
        times = self._times.get(key) or _Times()
        at = max(now, times.next_call)
        if at <= latest:
            times.next_call = at + self.interval
            self._remember(key, times)
        return at

    def _remember(self, key: str, times: _Times) -> None:
        self._times[key] = times
        self._times.move_to_end(key)
        if len(self._times) > MAX_KEYS:
            # The key that was idle for longest is forgotten. Messages that wait elsewhere carry their reservations.
            self._times.popitem(last=False)
