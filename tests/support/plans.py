"""How PostgreSQL executes the statements of the services."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from support.gateway import Json

Statement = tuple[str, Any]
"""The text of a statement, and its parameters."""


@contextmanager
def recorded(engine: AsyncEngine) -> Iterator[list[Statement]]:
    """Yield a list to which the statements that `engine` executes in the meantime are added."""
    statements: list[Statement] = []

    def record(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", record)


async def executed_nodes(engine: AsyncEngine, statement: Statement) -> Sequence[Json]:
    """Execute a statement, roll it back, and return the nodes of its plan that were executed."""
    return [
        node for node in await planned_nodes(engine, statement, "ANALYZE, BUFFERS, FORMAT JSON") if node["Actual Loops"]
    ]


async def planned_nodes(engine: AsyncEngine, statement: Statement, options: str = "FORMAT JSON") -> Sequence[Json]:
    """Explain a statement with these options, and return the nodes of its plan.

    It is prepared, because EXPLAIN of a statement with parameters would ignore `plan_cache_mode`.
    """
    text, parameters = statement
    arguments = f"({', '.join(map(_literal, parameters))})" if parameters else ""
    async with engine.connect() as connection:
        await connection.exec_driver_sql(f"PREPARE explained AS {text}")
        explained = await connection.exec_driver_sql(f"EXPLAIN ({options}) EXECUTE explained{arguments}")
        [plan] = explained.scalar_one()
        await connection.exec_driver_sql("DEALLOCATE explained")
    return list(plan_nodes(plan["Plan"]))


def _literal(value: object) -> str:
    """Return an SQL literal, whose type follows from the statement."""
    if value is None:
        return "NULL"
    if isinstance(value, list | tuple):
        return f"'{{{', '.join('NULL' if each is None else str(each) for each in value)}}}'"
    return f"'{value}'"


def scans(nodes: Sequence[Json], table: str) -> list[Json]:
    """Return the scans of `table` and of its partitions."""
    return [
        node
        for node in nodes
        if "Scan" in node["Node Type"] and node.get("Relation Name", "").partition("_until_")[0] == table
    ]


def rows_read(nodes: Sequence[Json], table: str) -> int:
    """Return how many rows of `table` and its partitions were read, including those that were then left out."""
    counted = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    read: float = sum(scan["Actual Loops"] * scan.get(name, 0) for scan in scans(nodes, table) for name in counted)
    return round(read)


def blocks_read(nodes: Sequence[Json], table: str) -> int:
    """Return how many blocks of `table` and its indexes were read, from memory or disk."""
    return sum(int(scan["Shared Hit Blocks"]) + int(scan["Shared Read Blocks"]) for scan in scans(nodes, table))


def plan_nodes(plan: Json) -> Iterator[Json]:
    """Return all nodes of a plan."""
    yield plan
    for child in plan.get("Plans", []):
        yield from plan_nodes(child)
