"""The figures of a run. This module imports no other, so that the report can be tested without servers."""

from dataclasses import asdict, dataclass
from typing import Any

BASE = "base"
WORKING_TREE = "working tree"
LATENCY_RATE = 200.0  # requests a second


@dataclass(frozen=True)
class CpuFigures:
    """The CPU of a run, in microseconds per notification."""

    notifications: int
    accepted: float
    """The requests accepted per second during the load."""
    failed: int
    """The number of requests that were not accepted at all."""
    rate_reached: bool
    """True if the offered requests were accepted in time."""
    processes: dict[str, float]
    load_generator: float
    other_work: float
    """The percentage of one core that the machine spent on anything else, including stolen time."""

    @property
    def total(self) -> float:
        """The CPU of all processes of the stack."""
        return sum(self.processes.values())


@dataclass(frozen=True)
class LatencyFigures:
    """The latencies of a run, p50 and p99 in milliseconds."""

    post: dict[str, float]
    """The time from the scheduled time of a request to its 201."""
    to_sent: dict[str, float]
    """The time from the 201 to the commit that made the notification `sent`."""
    failed: int
    other_work: float


@dataclass(frozen=True)
class Run:
    """The figures of one run of one side."""

    pair: int
    side: str
    commit: str
    tree: str
    """Git's tree id of the files that ran."""
    offered: float
    cpu: CpuFigures
    latency: LatencyFigures

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they are stored."""
        return asdict(self)
