"""Plans that PostgreSQL makes while tables are empty, and may keep after they have filled."""

from uuid import UUID

import pytest
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import ROWS_BY_KEY, PostgresSettings, create_engine
from notify_gateway.notifications import idempotency, insert
from notify_gateway.outbox import statements
from notify_gateway.users import channels
from notify_status_writer import result_store
from sqlalchemy import ClauseElement, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from support.gateway import Json
from support.plans import plan_nodes

STATEMENTS: dict[str, ClauseElement] = {
    "take": statements.TAKE_DUE,
    "renew": statements.RENEW,
    "release": statements.RELEASE,
    "postpone": statements.POSTPONE,
    "delete": statements.DELETE,
    "lock": result_store.LOCK,
    "existing": result_store.EXISTING,
    "read": result_store.READ,
    "lock attempts": result_store.LOCK_ATTEMPTS,
    "write": result_store.WRITE,
    "find by integer": channels.INTEGERS.find,
    "find by text": channels.KEYS.find,
    "insert": insert.INSERT,
    "recorded": idempotency.RECORDED,
}
GENERIC = {**ROWS_BY_KEY, "plan_cache_mode": "force_generic_plan"}
# Only the values that decide which partitions are read. NULL is enough for the others.
VALUES = {"id": f"'{new_id(utc_now())}'", "first_id": f"'{UUID(int=0)}'", "last_id": f"'{UUID(int=2**128 - 1)}'"}


async def generic_plan(connection: AsyncConnection, statement: ClauseElement) -> Json:
    """Return the plan that a prepared statement keeps."""
    compiled = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
    session = (await connection.get_raw_connection()).driver_connection
    assert session is not None
    await session.execute(f"PREPARE kept AS {compiled}")
    values = ", ".join(VALUES.get(name, "NULL") for name in compiled.params)
    [plan] = await session.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE kept({values})")
    await session.execute("DEALLOCATE kept")
    whole: Json = plan["Plan"]
    return whole


@pytest.mark.parametrize("name", STATEMENTS)
async def test_rows_are_looked_up_by_key_even_if_the_plan_was_made_while_tables_were_empty(
    postgres: PostgresSettings, engine: AsyncEngine, name: str
) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE"))
    prepared = create_engine(postgres, pool_size=1, planner=GENERIC)
    async with prepared.connect() as connection:
        plan = await generic_plan(connection, STATEMENTS[name])
    await prepared.dispose()
    scans = [node for node in plan_nodes(plan) if node["Node Type"].startswith(("Seq Scan", "Index", "Bitmap Index"))]
    assert scans
    assert [scan for scan in scans if "Index Cond" not in scan] == []
