"""What a run measures. Nothing else is imported here, so that the report can be tested without servers."""

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
    """Requests a second that were accepted while the load lasted."""
    failed: int
    """Requests that were not accepted at all."""
    rate_reached: bool
    """Whether the offered requests were accepted in time."""
    processes: dict[str, float]
    load_generator: float
    other_work: float
    """Percent of one core that the machine spent on anything else, stolen time included."""

    @property
    def total(self) -> float:
        """The CPU of all processes of the stack."""
        return sum(self.processes.values())


@dataclass(frozen=True)
class LatencyFigures:
    """The latencies of a run, p50 and p99 in milliseconds."""

    post: dict[str, float]
    """From the time a request was due to its 201."""
    to_sent: dict[str, float]
    """From the 201 to the commit that made the notification `sent`."""
    failed: int
    other_work: float


@dataclass(frozen=True)
class Run:
    """What one run of one side has measured."""

    pair: int
    side: str
    commit: str
    tree: str
    """Git's id of the files that ran."""
    offered: float
    cpu: CpuFigures
    latency: LatencyFigures

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they are stored."""
        return asdict(self)
