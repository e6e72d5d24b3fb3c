"""Steps of migrations that take long on large tables, without blocking the services that use them.

Each step commits what its migration has done so far. An interrupted migration runs again from the beginning, so these
steps can be repeated. Everything that precedes them in a migration must be repeatable, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op
from sqlalchemy import text

# A migration that waits for a lock blocks every later statement on the table. The timeout is below PostgreSQL's
# `deadlock_timeout` (1 s), so that in a deadlock with a service the migration gives up before the service fails.
MIGRATION_LOCK_TIMEOUT = "500ms"

IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)")
# A partition that is attached later gets its index from its parent.
WITHOUT_INDEX = text("""
    SELECT child.relname
    FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
    WHERE inhparent = to_regclass(:table) AND NOT inhdetachpending AND NOT EXISTS (
        SELECT FROM pg_index JOIN pg_inherits attached ON attached.inhrelid = indexrelid
        WHERE indrelid = child.oid AND attached.inhparent = to_regclass(:index)
    )
    ORDER BY child.relname
""")


def commit() -> None:
    """Commit, which releases all locks, and continue in a new transaction."""
    with op.get_context().autocommit_block():
        pass


def create_index(index: str, table: str, definition: str, *, unique: bool = False) -> None:
    """Create an index of a plain table; `definition` follows the table's name."""
    with op.get_context().autocommit_block():
        _build(index, table, definition, unique=unique)


def create_partitioned_index(index: str, table: str, suffix: str, definition: str) -> None:
    """Create an index of a partitioned table; those of its partitions are named after the partition and `suffix`."""
    with op.get_context().autocommit_block():
        with _short_lock_waits():
            op.execute(f"CREATE INDEX IF NOT EXISTS {index} ON ONLY {table} {definition}")
        for partition in op.get_bind().execute(WITHOUT_INDEX, {"table": table, "index": index}).scalars().all():
            _build(f"{partition}_{suffix}", partition, definition)
            with _short_lock_waits():
                op.execute(f"ALTER INDEX {index} ATTACH PARTITION {partition}_{suffix}")


def replace_check(table: str, constraint: str, condition: str) -> None:
    """Replace a check constraint; the existing rows are checked while other sessions can write."""
    with op.get_context().autocommit_block():
        with _short_lock_waits():
            op.execute(
                f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint}, "
                f"ADD CONSTRAINT {constraint} CHECK ({condition}) NOT VALID"
            )
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}")


def _build(index: str, table: str, definition: str, *, unique: bool = False) -> None:
    is_valid = op.get_bind().execute(IS_VALID, {"index": index}).scalar_one_or_none()
    if is_valid is False:  # an interrupted CREATE INDEX CONCURRENTLY left it behind
        op.execute(f"DROP INDEX CONCURRENTLY {index}")
    if not is_valid:
        kind = "UNIQUE INDEX" if unique else "INDEX"
        op.execute(f"CREATE {kind} CONCURRENTLY {index} ON {table} {definition}")


@contextmanager
def _short_lock_waits() -> Iterator[None]:
    """Limit how long statements wait for a lock, because other sessions' statements wait behind them."""
    op.execute(f"SET lock_timeout = '{MIGRATION_LOCK_TIMEOUT}'")
    try:
        yield
    finally:
        op.execute("RESET lock_timeout")
