"""Execute a single statement on PostgreSQL."""

from typing import Any

from notify_database.engine import database_errors
from sqlalchemy import CursorResult, Executable
from sqlalchemy.ext.asyncio import AsyncEngine


async def execute(engine: AsyncEngine, statement: Executable, **parameters: object) -> CursorResult[Any]:
    """Execute one statement and commit it; raise `DatabaseUnavailable` or `DataRejected`."""
    with database_errors():
        async with engine.begin() as connection:
            return await connection.execute(statement, parameters)
