"""Settings that save CPU in this service, for the contenders in Python whose documentation does not mention them."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from typing_extensions import override

GC_THRESHOLDS = (50_000, 20, 100)  # as in this service


def collect_garbage_less_often() -> None:
    """Make full collections rare, because they traverse every message in flight, and leave out what exists already."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


@asynccontextmanager
async def tuned(_: object) -> AsyncIterator[None]:
    """Collect garbage less often in the process of a FastAPI application; its lifespan."""
    collect_garbage_less_often()
    yield


class PlainConnection(asyncpg.Connection):
    """A connection that is released without the four statements that reset it, because nothing here changes it."""

    @override
    def get_reset_query(self) -> str:
        """Return no query."""
        return ""
