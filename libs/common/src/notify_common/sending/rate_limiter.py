"""Space calls evenly. The limiter has no clock: what it returns depends only on the times that it is given."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

MAX_KEYS = 10_000
# A call waits for its turn in memory for at most this long. If its turn is later, its message waits in a retry queue.
LONGEST_TURN_WAIT = 5.0  # seconds
ROUNDING = 0.001  # seconds by which calculated times may differ


@dataclass(slots=True)
class _Times:
    unreserved: float = -math.inf
    """The earliest time that is not reserved."""
    next_call: float = -math.inf
    """The earliest time for the next call: one interval after the last."""
    further: list[float] = field(default_factory=list)
    """A heap of the times at which calls send further messages that are not counted in `next_call` yet."""


class RateLimiter:
    """Keeps calls with the same key at least `interval` seconds apart.

    A call reserves a time, and redeems it when that time has come. Reservations may be far ahead, but a call that
    redeems one waits only for the last call, even if another process made its reservation.

    A call that sends several messages counts once for each of them, at the time of that message.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._times: OrderedDict[str, _Times] = OrderedDict()

    def reserve(self, key: str, now: float, latest: float = math.inf, *, messages: int = 1) -> float:
        """Return the next free time, and reserve it for the messages unless it is later than `latest`."""
        times = self._times.get(key) or _Times()
        at = max(self._next_call(times, now), times.unreserved)
        if at <= latest:
            times.unreserved = at + messages * self.interval
            self._remember(key, times)
        return at

    def next_call(self, key: str, now: float) -> float:
        """Return when the next call can be made."""
        times = self._times.get(key)
        return now if times is None else self._next_call(times, now)

    def redeem(self, key: str, now: float, latest: float = math.inf, *, further: Sequence[float] = ()) -> float:
        """Return when the call can be made, and count it as made at that time unless that is later than `latest`.

        `further` has the delay of each further message of the call, in seconds after the first.
        """
        times = self._times.get(key) or _Times()
        at = self._next_call(times, now)
        if at <= latest:
            times.next_call = at + self.interval
            for seconds in further:
                heappush(times.further, at + seconds)
            self._remember(key, times)
        return at

    def withdraw(self, key: str, now: float, at: float, further: Sequence[float]) -> None:
        """Count no more `further` messages of a call that was made `at` that time, because it has ended."""
        if (times := self._times.get(key)) is None:
            return
        self._next_call(times, now)  # this counts those whose time has come
        for seconds in further:
            if at + seconds in times.further:
                times.further.remove(at + seconds)
        heapify(times.further)

    def _next_call(self, times: _Times, now: float) -> float:
        """Return when the next call can be made, after the further messages that come until then."""
        while times.further and times.further[0] <= max(now, times.next_call) + ROUNDING:
            times.next_call = max(times.next_call, heappop(times.further)) + self.interval
        return max(now, times.next_call)

    def _remember(self, key: str, times: _Times) -> None:
        self._times[key] = times
        self._times.move_to_end(key)
        if len(self._times) > MAX_KEYS:
            # The key that was idle for longest is forgotten. Messages that wait elsewhere carry their reservations.
            self._times.popitem(last=False)
