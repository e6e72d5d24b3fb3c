"""Queue the calls to each recipient in order of arrival."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Lane:
    first: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0


class RecipientLanes:
    """A lane for each recipient, in which only the first call may take a slot that other recipients could use."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def length(self, recipient: str) -> int:
        """Return how many calls are in the recipient's lane."""
        lane = self._lanes.get(recipient)
        return 0 if lane is None else lane.calls

    @asynccontextmanager
    async def first(self, recipient: str) -> AsyncIterator[None]:
        """Wait until the call is the first in its lane, and stay there until the context ends."""
        lane = self._lanes.setdefault(recipient, _Lane())
        lane.calls += 1
        try:
            async with lane.first:
                yield
        finally:
            lane.calls -= 1
            if not lane.calls:
                del self._lanes[recipient]
