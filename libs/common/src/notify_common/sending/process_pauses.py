"""Notice that this process was stopped for a while, for example by SIGSTOP or together with its machine.

RabbitMQ closes the connection of a process that sends no heartbeats, and gives its messages to other processes. When
the process runs again, it takes the event loop a moment to find out. Calls must not begin in that moment.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

CHECK_INTERVAL = 1.0  # seconds
HOLD = 1.0  # seconds in which this process finds out whether its connection is closed
# CLOCK_MONOTONIC stops while a machine is suspended.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ProcessPauses:
    """Notices pauses that are longer than `heartbeat` seconds."""

    def __init__(self, heartbeat: float, clock: Callable[[], float] = lambda: time.clock_gettime(CLOCK)) -> None:
        self._longest = max(heartbeat, 2 * CHECK_INTERVAL)  # the timer itself may be a little late
        self._clock = clock
        self.over = asyncio.Event()
        """Not set in the first moment after a pause."""
        self.over.set()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for pauses until the context ends."""
        self._checked_at = self._clock()
        self._check()
        try:
            yield
        finally:
            self._timer.cancel()

    def _check(self) -> None:
        now, loop = self._clock(), asyncio.get_running_loop()
        if now - self._checked_at > self._longest:
            self.over.clear()
            loop.call_later(HOLD, self.over.set)
        self._checked_at = now
        # This is a timer and not a task, so that after a pause it runs before any task does.
        self._timer = loop.call_later(CHECK_INTERVAL, self._check)
