"""The figures of one contender, as they are stored as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

METHOD = 2
"""The version of the method. Results of another version cannot be shown with these tables."""


@dataclass(frozen=True)
class RateFigures:
    """The figures at a fixed rate."""

    post: dict[str, float]
    """The quantiles of a POST in milliseconds."""
    to_sent: dict[str, float]
    """The quantiles from accepted to sent, minus the provider's latency."""
    cpu: dict[str, float]
    """The microseconds of CPU per notification, by process."""
    accepted: int
    left: int
    """The accepted notifications that were not sent within 5 s after the load."""


@dataclass(frozen=True)
class TailFigures:
    """The largest latencies at a fraction of the contender's own highest rate, so that rounds can be pooled."""

    rate: float
    post_count: int
    post: list[float]
    """The largest latencies of a POST in milliseconds."""
    to_sent_count: int
    to_sent: list[float]
    """The largest times from accepted to sent in milliseconds, minus the provider's latency."""


@dataclass
class ContenderFigures:
    """The figures of one contender at one provider latency in one round."""

    contender: str
    latency: float
    round: int
    variant: str = ""
    """The key of the configuration that was measured, if the contender has several."""
    accepted: float | None = None
    """The accepted requests a second, measured while nothing is sent."""
    end_to_end: float = 0.0
    """The accepted requests a second at the highest offered rate at which the backlog does not grow."""
    search_ended: bool = True
    """False if the time was up before a rate close above was found not to be sustained."""
    cpu: dict[str, float] = field(default_factory=dict)
    """The microseconds of CPU per notification at that rate, by process."""
    tried: list[tuple[float, bool]] = field(default_factory=list)
    """The offered rates, each with True if it was sustained and False otherwise."""
    at: dict[str, RateFigures] = field(default_factory=dict)
    """The figures at fixed rates, by requests a second."""
    tail: TailFigures | None = None
    memory: dict[str, float] = field(default_factory=dict)
    """The peak memory in MiB, by process."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures in the form in which they are stored as JSON."""
        return asdict(self)
