"""An event loop whose clock jumps to the next timer, so that a test simulates minutes in milliseconds."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from typing_extensions import override

Result = TypeVar("Result")


class _Selector(selectors.BaseSelector):
    """A selector that waits for no file; instead of sleeping, it advances the clock."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self._advance = advance
        self._keys: dict[Any, selectors.SelectorKey] = {}

    @override
    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[fileobj] = selectors.SelectorKey(fileobj, number, events, data)
        return self._keys[fileobj]

    @override
    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set")
        self._advance(timeout)
        return []

    @override
    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop for code that waits for nothing but timers and other tasks."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self.pause))

    @override
    def time(self) -> float:
        return self._now

    def pause(self, seconds: float) -> None:
        """Let the time pass without running anything, as if the process were stopped."""
        self._now += max(seconds, 0.0)


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` on a virtual clock, which starts at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
