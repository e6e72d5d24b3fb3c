"""Retry with growing waits during an outage; log when it begins, once a minute while it lasts, and when it ends."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")

FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0  # seconds
JITTER = 0.3  # a fraction of the wait, so that processes that fail together do not retry together
REMINDER_INTERVAL = 60.0  # seconds


class Outage:
    """Tracks the outages of one dependency, such as a connection. `what` describes an outage in the log."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._began: float | None = None
        self._reminded = 0.0
        self._wait = FIRST_WAIT

    async def retry(
        self,
        operation: Callable[[], Awaitable[Result]],
        error: type[Exception],
        *,
        unless: tuple[type[Exception], ...] = (),
    ) -> Result:
        """Call `operation` until it does not raise `error`; return its result. Errors in `unless` are not retried."""
        while True:
            try:
                result = await operation()
            except error as failure:
                if isinstance(failure, unless):
                    raise
                await asyncio.sleep(self.failed(failure))
            else:
                self.ended()
                return result

    def failed(self, error: object) -> float:
        """Record a failure; return the seconds to wait before the next try."""
        now = time.monotonic()
        if self._began is None:
            self._began = self._reminded = now
            self._wait = FIRST_WAIT
            self._log.warning("%s; retrying", self._what, extra={"error": str(error)})
        elif now - self._reminded >= REMINDER_INTERVAL:
            self._reminded = now
            seconds = round(now - self._began, 1)
            self._log.warning("%s; still retrying", self._what, extra={"error": str(error), "seconds": seconds})
        wait = self._wait * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        self._wait = min(self._wait * 2, LONGEST_WAIT)
        return wait

    def ended(self) -> None:
        """Record a success."""
        if self._began is not None:
            seconds = round(time.monotonic() - self._began, 1)
            self._log.info("resolved: %s", self._what, extra={"seconds": seconds})
            self._began = None
