"""A fault that lasts is logged when it begins, once a minute, and when it is over; its retries come ever slower."""

import logging
import random
import time

FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0  # seconds
JITTER = 0.3  # of a wait: processes that fail together do not come back together
REMINDER_INTERVAL = 60.0  # seconds


class LastingFault:
    """One thing that can be out of order, such as a connection."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._began: float | None = None
        self._reminded = 0.0
        self._wait = FIRST_WAIT

    def occurred(self, error: object) -> float:
        """Note that it did not work (again); seconds to wait before the next try."""
        now = time.monotonic()
        if self._began is None:
            self._began = self._reminded = now
            self._wait = FIRST_WAIT
            self._log.warning("%s; trying again", self._what, extra={"error": str(error)})
        elif now - self._reminded >= REMINDER_INTERVAL:
            self._reminded = now
            seconds = round(now - self._began, 1)
            self._log.warning("%s still; trying again", self._what, extra={"error": str(error), "seconds": seconds})
        wait = self._wait * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        self._wait = min(self._wait * 2, LONGEST_WAIT)
        return wait

    def over(self) -> None:
        """Note that it works."""
        if self._began is not None:
            seconds = round(time.monotonic() - self._began, 1)
            self._log.info("%s: over", self._what, extra={"seconds": seconds})
            self._began = None
