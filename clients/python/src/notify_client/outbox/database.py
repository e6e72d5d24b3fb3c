"""Run short transactions on an engine of either kind."""

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

P = ParamSpec("P")
Result = TypeVar("Result")

TIMEOUT = 20.0  # seconds


class DatabaseFailed(Exception):
    """A transaction failed. It is unknown whether it was committed."""


async def transaction(
    engine: Engine | AsyncEngine,
    function: Callable[Concatenate[Connection, P], Result],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    """Call `function` in a transaction; raise `DatabaseFailed` for whatever the database or its driver raises."""
    try:
        async with asyncio.timeout(TIMEOUT):
            if isinstance(engine, AsyncEngine):
                async with engine.begin() as connection:
                    return await connection.run_sync(function, *args, **kwargs)
            return await asyncio.to_thread(_in_thread, engine, lambda connection: function(connection, *args, **kwargs))
    except Exception as error:
        # SQLAlchemy passes some errors of the drivers on as they are, above all those of new connections.
        # The other lines of SQLAlchemy's messages contain parameters.
        raise DatabaseFailed(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


def _in_thread(engine: Engine, function: Callable[[Connection], Result]) -> Result:
    with engine.begin() as connection:
        return function(connection)
