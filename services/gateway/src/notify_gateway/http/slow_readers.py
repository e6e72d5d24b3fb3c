"""Limit the responses that wait in memory because their clients do not read them."""

from typing import Protocol

MAX_SLOW_READERS = 200  # connections; each takes up to 230 KiB besides its response
MAX_UNREAD_TOGETHER = 32 * 1024 * 1024  # bytes of all responses that wait


class SlowReader(Protocol):
    """A connection whose client does not read."""

    def give_up(self) -> None:
        """Close the connection without sending what has been written."""


class SlowReaders:
    """The connections that wait until their clients read; beyond a limit, those that have waited longest give up."""

    def __init__(self) -> None:
        self._waiting: dict[SlowReader, int] = {}  # the bytes that each has written; the oldest comes first
        self._bytes = 0

    def add(self, reader: SlowReader, size: int) -> None:
        """Count a connection for which `size` bytes wait."""
        self._waiting[reader] = size
        self._bytes += size
        while len(self._waiting) > MAX_SLOW_READERS or self._bytes > MAX_UNREAD_TOGETHER:
            oldest = next(iter(self._waiting))
            self.discard(oldest)
            oldest.give_up()

    def discard(self, reader: SlowReader) -> None:
        """Stop counting a connection, if it is counted."""
        self._bytes -= self._waiting.pop(reader, 0)
