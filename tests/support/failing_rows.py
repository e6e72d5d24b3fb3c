"""Make statements fail for some rows, as if their page were bad, or for many: a trigger or a policy raises an error."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from support.services import eventually

ALL = "true"
RAISE = """
    CREATE SEQUENCE failures;
    CREATE FUNCTION fail() RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM nextval('failures');
        RAISE EXCEPTION 'of this test' USING ERRCODE = '{code}';
    END $$;
    GRANT USAGE ON SEQUENCE failures TO public;
"""
TRIGGER = """
    CREATE FUNCTION fail_for_row() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM fail();
        RETURN NULL;
    END $$;
    CREATE TRIGGER failing BEFORE {operation} ON {table} FOR EACH ROW WHEN ({condition})
        EXECUTE FUNCTION fail_for_row();
"""
TIME_OUT = """
    CREATE FUNCTION time_out() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT count(*) FROM updated) > {rows} THEN
            RAISE EXCEPTION 'of this test' USING ERRCODE = 'query_canceled';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER failing AFTER UPDATE ON {table} REFERENCING NEW TABLE AS updated FOR EACH STATEMENT
        EXECUTE FUNCTION time_out();
"""
# A policy is not applied to the owner of the table.
POLICY = """
    CREATE POLICY failing ON {table} USING (CASE WHEN {condition} THEN fail() ELSE true END);
    ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
"""


async def fail_on(engine: AsyncEngine, operation: str, table: str, condition: str = ALL, code: str = "P0001") -> None:
    """Make each SELECT, INSERT, UPDATE or DELETE fail that processes a row for which the condition holds."""
    statements = RAISE.format(code=code)
    if operation == "SELECT":
        statements += POLICY.format(table=table, condition=condition)
    else:
        statements += TRIGGER.format(table=table, operation=operation, condition=condition)
    await _execute(engine, statements)


async def time_out_beyond(engine: AsyncEngine, table: str, rows: int) -> None:
    """Make each UPDATE of more than `rows` rows fail as if it had taken too long."""
    await _execute(engine, TIME_OUT.format(table=table, rows=rows))


async def repair(engine: AsyncEngine, table: str) -> None:
    """Make statements that process these rows succeed again."""
    statements = f"DROP TRIGGER IF EXISTS failing ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"
    while True:
        with suppress(asyncpg.DeadlockDetectedError):  # a service locks the partitions in another order
            return await _execute(engine, statements)


@asynccontextmanager
async def repaired_afterwards(engine: AsyncEngine, table: str) -> AsyncIterator[None]:
    """Repair the rows at the end, even if the test fails, because a service that waits for them would not stop."""
    try:
        yield
    finally:
        await repair(engine, table)


async def more_failures_than(engine: AsyncEngine, count: int, reason: str) -> None:
    """Wait until more than `count` statements have failed; `reason` says what that shows."""

    async def have_failed() -> bool:
        async with engine.connect() as connection:
            failures: int = (await connection.execute(text("SELECT last_value FROM failures"))).scalar_one()
        return failures > count

    await eventually(have_failed, reason)


async def _execute(engine: AsyncEngine, statements: str) -> None:
    async with engine.begin() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(statements)  # SQLAlchemy would allow only one statement
