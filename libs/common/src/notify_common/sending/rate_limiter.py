"""Space calls to a provider evenly, by reserving a time for each."""

MAX_KEYS = 10_000
LONGEST_RESERVATION = 5.0  # seconds that a call may wait for its reserved time


class RateLimiter:
    """Keeps calls with the same key at least `interval` seconds apart."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next: dict[str, float] = {}

    def reserve(self, key: str, now: float, timeout: float) -> float:
        """Reserve the next free time; return the seconds until then. Raise `TimeoutError` if that is too far away."""
        at = max(now, self._next.get(key, now))
        if at - now > min(timeout, LONGEST_RESERVATION):
            raise TimeoutError
        if len(self._next) >= MAX_KEYS:
            self._next = {key: next_ for key, next_ in self._next.items() if next_ > now}
        self._next[key] = at + self._interval
        return at - now
