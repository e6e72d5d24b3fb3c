"""Decide when a recipient may be called next, depending only on the given times."""

import math
from collections.abc import Sequence

from notify_common.sending.rate_limiter import RateLimiter

MAX_THROTTLED = 10_000


class RecipientTurns:
    """The turns of a provider's recipients: their rate limit, and the times until which the provider throttles them."""

    def __init__(self, rate: float) -> None:
        self.interval = 1 / rate if rate else 0.0
        self._limiter = RateLimiter(self.interval) if rate else None
        self._throttled_until: dict[str, float] = {}
        self._throttled_in_a_row: set[str] = set()
        """The recipients that were throttled while no other was served."""

    def reserve(self, recipient: str, now: float, latest: float = math.inf, *, messages: int = 1) -> float:
        """Return the time of a new turn, and reserve it for the messages unless it is later than `latest`."""
        earliest = max(now, self._throttled_until.get(recipient, now))
        if self._limiter is None:
            return earliest
        return self._limiter.reserve(recipient, earliest, latest, messages=messages)

    def next_call(self, recipient: str, now: float) -> float:
        """Return when the next call to the recipient can be made."""
        earliest = max(now, self._throttled_until.get(recipient, now))
        return earliest if self._limiter is None else self._limiter.next_call(recipient, earliest)

    def redeem(self, recipient: str, now: float, latest: float = math.inf, *, further: Sequence[float] = ()) -> float:
        """Return when a call whose turn has come can be made, and count it unless that is later than `latest`.

        `further` has the delay of each further message of the call, in seconds after the first.
        """
        earliest = max(now, self._throttled_until.get(recipient, now))
        return earliest if self._limiter is None else self._limiter.redeem(recipient, earliest, latest, further=further)

    def throttle(self, recipient: str, now: float, until: float) -> bool:
        """Let the recipient's calls wait until that time.

        Return True if another one was throttled, too, and none has been served since. Then all seem to be throttled.
        """
        self._throttled_until.pop(recipient, None)
        others = {key: ends for key, ends in self._throttled_until.items() if ends > now}
        if len(others) >= MAX_THROTTLED:
            del others[next(iter(others))]
        self._throttled_until = {**others, recipient: until}
        if len(self._throttled_in_a_row) < MAX_THROTTLED:
            self._throttled_in_a_row.add(recipient)
        return len(self._throttled_in_a_row) > 1

    def served(self, recipient: str, now: float) -> None:
        """Note that the provider has accepted a call to the recipient, so not all recipients are throttled."""
        if recipient not in self._throttled_in_a_row:
            self._throttled_in_a_row.clear()
        elif self._throttled_until.get(recipient, now) <= now:
            self._throttled_in_a_row.discard(recipient)
