"""The order of the measurements."""

from collections.abc import Sequence

from benchmarks.contenders.contender import Contender
from benchmarks.plan import Unit

LATENCIES = (0.0, 0.2)  # simulated latencies of the provider in seconds
RATES = (50.0, 200.0, 500.0)  # requests a second


def schedule(contenders: Sequence[Contender], rounds: int) -> list[tuple[Contender, float, int, Unit]]:
    """Return what is measured in which order; each round begins with another contender."""
    return [
        (
            each,
            latency,
            round_,
            Unit(round_ == 1, len(RATES) if latency else 0, losses=round_ == rounds and latency == LATENCIES[-1]),
        )
        for round_ in range(1, rounds + 1)
        for each in rotated(contenders, round_ - 1)
        for latency in LATENCIES
    ]


def rotated(contenders: Sequence[Contender], first: int) -> list[Contender]:
    """Return the contenders in turn, beginning with the given one."""
    first %= len(contenders)
    return [*contenders[first:], *contenders[:first]]
