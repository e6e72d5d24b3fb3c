"""Queue the calls to each recipient in memory, in order of arrival."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Queue:
    head: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the call at the head of the queue."""
    calls: int = 0


class RecipientQueues:
    """A queue for each recipient, in which only the first call may take a slot that other recipients could use."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    def length(self, recipient: str) -> int:
        """Return how many calls are in the recipient's queue."""
        queue = self._queues.get(recipient)
        return 0 if queue is None else queue.calls

    @asynccontextmanager
    async def head(self, recipient: str) -> AsyncIterator[None]:
        """Wait until the call is at the head of its queue, and stay there until the context ends."""
        queue = self._queues.setdefault(recipient, _Queue())
        queue.calls += 1
        try:
            async with queue.head:
                yield
        finally:
            queue.calls -= 1
            if not queue.calls:
                del self._queues[recipient]
