"""The figures of a run. This module imports no other benchmark module, so that tests need no servers."""

from dataclasses import asdict, dataclass
from typing import Any

BASE = "base"
WORKING_TREE = "working tree"
LATENCY_RATE = 200.0  # requests a second


@dataclass(frozen=True)
class CpuFigures:
    """The CPU used in a run, in microseconds per notification."""

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
        """The CPU used by all processes of the stack together."""
        return sum(self.processes.values())


@dataclass(frozen=True)
class LatencyFigures:
    """The latencies of a run, as p50 and p99 in milliseconds."""

    post: dict[str, float]
    """The time from a request's scheduled time to its 201."""
    to_sent: dict[str, float]
    """The time from the 201 to the commit that made the notification `sent`."""
    failed: int
    other_work: float


@dataclass(frozen=True)
class Run:
    """The figures from one run of one side."""

    pair: int
    side: str
    commit: str
    tree: str
    """Git's tree id for the files that were measured."""
    offered: float
    cpu: CpuFigures
    latency: LatencyFigures

    def as_json(self) -> dict[str, Any]:
        """Return the figures in the form in which they are stored as JSON."""
        return asdict(self)
