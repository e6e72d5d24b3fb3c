"""Run a function in several tasks."""

import asyncio
from collections.abc import Callable, Coroutine


async def in_parallel(tasks: int, work: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run `work` in this many tasks until all have ended. If one fails, cancel the others, and raise its error."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
