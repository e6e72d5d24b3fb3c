"""The trial calls of an open circuit."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta


class TrialCalls:
    """Knows which trial calls are in progress. They are numbered, so that an old one is not taken for the current one.

    A call that sends several messages takes long, and must not hold up the trials of other calls. So at most one trial
    with several messages and at most one with a single message are in progress.

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
        self._running: dict[bool, int] = {}
        """The numbers of the trials with several messages (True) and with one (False)."""

    def is_running(self, *, several: bool) -> bool:
        """Return True if a trial call with several messages, or with one, is in progress."""
        return several in self._running

    def is_current(self, number: int | None) -> bool:
        """Return True if the trial call with this number is in progress, and has not been ended; False for None."""
        return number in self._running.values()

    def begin(self, acquired: ExitStack, *, several: bool) -> int:
        """Return the number of the new trial call, which is in progress until `acquired` is closed."""
        self._last += 1
        number = self._running[several] = self._last
        acquired.callback(self._end, number, several)
        if self._connect_timeout is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._connect_timeout.total_seconds(), self._connected, number)
            acquired.callback(timer.cancel)
        return number

    def end_all(self) -> None:
        """End all trials, because the circuit is closed. Those in progress have no part in a later outage."""
        self._running.clear()

    def _connected(self, number: int) -> None:
        if self.is_current(number):
            self._on_connected()

    def _end(self, number: int, several: bool) -> None:
        if self._running.get(several) == number:
            del self._running[several]
            self._on_end()
