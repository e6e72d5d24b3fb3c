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
    text, parameters = statement
    async with engine.connect() as connection:
        explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", parameters)
        [plan] = explained.scalar_one()
    return [node for node in _nodes(plan["Plan"]) if node["Actual Loops"]]


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


def _nodes(plan: Json) -> Iterator[Json]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
