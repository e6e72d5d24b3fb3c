"""The figures of a profile, as they are stored as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.pair.figures import CpuFigures


@dataclass(frozen=True)
class StatementFigures:
    """One statement of the services, from `pg_stat_statements`."""

    statement: str
    calls: float
    """The calls per notification."""
    milliseconds: float
    """The mean time of a call, planning included."""
    rows: float
    """The rows per call."""
    share: float
    """The fraction of the time of all statements."""


@dataclass(frozen=True)
class BatchFigures:
    """The batches of one step of a process."""

    process: str
    step: str
    items: float
    """The mean number of items per batch."""
    batches: float
    """The batches per notification."""


@dataclass(frozen=True)
class LoadFigures:
    """The figures at one load."""

    name: str
    rate: float
    """The offered requests a second; 0 means as many as the gateway can answer."""
    seconds: float
    cpu: CpuFigures
    statements: list[StatementFigures]
    batches: list[BatchFigures]
    messages: dict[str, float]
    """The messages per notification, by the exchange that they were published to."""
    wal_syncs: float
    """The flushes of PostgreSQL's WAL to the disk per notification."""
    wal_sync_milliseconds: float
    """Their mean time."""
    samples: dict[str, int]
    """The number of samples by process, without those in which it was idle."""
    most_samples: int
    """The number of samples of a process that is never idle."""
    areas: dict[str, dict[str, float]]
    """The fraction of each process's samples by area of the code."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures in the form in which they are stored as JSON."""
        return asdict(self)
