"""How many deliveries a chunk has, so that no chunk takes too long again and again."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from cachetools import LRUCache
from notify_database.errors import StatementTimedOut

MAX_REDUCED = 1_000

Key = TypeVar("Key", bound=Hashable)


class ChunkSizes(Generic[Key]):
    """The sizes of the next chunks, at most `largest`.

    A chunk that timed out is halved, because it would time out again: its rows may not be in PostgreSQL's memory, or
    one of them may be locked. After each chunk that did not, the size doubles again.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._reduced: LRUCache[Key, int] = LRUCache(MAX_REDUCED)

    @contextmanager
    def next(self, key: Key) -> Iterator[int]:
        """Yield the size of the next chunk of `key`, and note whether its statement times out in this context."""
        size = self._reduced.get(key, self._largest)
        try:
            yield size
        except StatementTimedOut:
            self._reduced[key] = max(size // 2, 1)
            raise
        if 2 * size < self._largest:
            self._reduced[key] = 2 * size
        else:
            self._reduced.pop(key, None)
