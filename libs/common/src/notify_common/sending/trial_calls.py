"""The trial calls of an open circuit, of which at most one is in progress."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta


class TrialCalls:
    """Knows which trial call is in progress. Trials are numbered, so that an old one is not taken for the current one.

    With a `connect_timeout`, a trial that takes longer has a connection. It ends then, so that a trial that hangs does
    not delay those of a later outage.
    """

    def __init__(
        self, connect_timeout: timedelta | None, on_connected: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        self._connect_timeout = connect_timeout
        self._on_connected = on_connected
        self._on_end = on_end
        self._last = 0
        self._running = 0

    @property
    def running(self) -> bool:
        """True if a trial call is in progress."""
        return self._running > 0

    def is_running(self, trial: int) -> bool:
        """Return whether the trial call with this number is in progress."""
        return 0 < trial == self._running

    def begin(self, acquired: ExitStack) -> int:
        """Return the number of the new trial call, which is in progress until `acquired` is closed."""
        self._last += 1
        number = self._running = self._last
        acquired.callback(self._end, number)
        if self._connect_timeout is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._connect_timeout.total_seconds(), self._connected, number)
            acquired.callback(timer.cancel)
        return number

    def _connected(self, number: int) -> None:
        self._on_connected()
        self._end(number)

    def _end(self, number: int) -> None:
        if self._running == number:
            self._running = 0
            self._on_end()
