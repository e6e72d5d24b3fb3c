"""How the time of a benchmark is divided: the length of each step follows from the number of contenders and rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

# The seconds that a measurement takes besides the loads themselves. They are estimates for two cores. If they are too
# low, a search ends early, and its result says so.
START = 5.0  # emptying the servers, starting the processes and warming them up
STEP = 1.2  # starting the load generator, and waiting until everything is sent
LOSSES = 20.0  # killing a contender and waiting for what is sent late
OTHER = 60.0  # starting the servers and writing the results

FIRST_SEARCH, LATER_SEARCH = 7, 3  # steps
RESTARTS = 1.5  # after a first search, because a step was far beyond the contender's capacity
RATE, TAIL = 1.5, 2.5  # lengths of these loads in steps
SHORTEST, LONGEST = 1.5, 6.0  # seconds


@dataclass(frozen=True)
class Unit:
    """A measurement of one contender at one latency in one round."""

    first: bool
    """True in the first round, in which nothing is known about the contender."""
    rates: int
    """The number of fixed rates; 0 if only what is accepted is measured after the search."""
    losses: bool
    """True if the contender is killed at the end."""

    def after_search(self, step: float) -> float:
        """Return the seconds that the unit takes after its search, with steps of this length."""
        loads = self.rates * (RATE * step + STEP) + TAIL * step + STEP if self.rates else step + STEP
        return loads + (LOSSES if self.losses else 0)

    def total(self, step: float) -> float:
        """Return the seconds that the unit takes."""
        search = (FIRST_SEARCH if self.first else LATER_SEARCH) * (step + STEP)
        return START * (1 + RESTARTS if self.first else 1) + search + self.after_search(step)


@dataclass(frozen=True)
class Plan:
    """The lengths of the loads in seconds."""

    step: float
    """A step of the search for the highest sustained rate, and the measurement of what is accepted."""

    @property
    def fixed(self) -> float:
        """A load at a fixed rate."""
        return RATE * self.step

    @property
    def tail(self) -> float:
        """The load whose tail latency is measured."""
        return TAIL * self.step


def plan(minutes: float, units: Sequence[Unit]) -> Plan:
    """Return the longest steps with which all units are measured in `minutes`."""
    overhead = sum(unit.total(0) for unit in units) + OTHER
    per_second = sum(unit.total(1) - unit.total(0) for unit in units)
    step = (minutes * 60 - overhead) / per_second
    if step < SHORTEST:
        needed = (overhead + SHORTEST * per_second) / 60
        raise ValueError(
            f"{minutes:g} minutes are too few: at least {needed:.0f} are needed, or fewer rounds (--rounds)"
        )
    return Plan(min(step, LONGEST))


def search_deadline(ends: float, step: float, units: Sequence[Unit]) -> float:
    """Return when the search of the first of the remaining units must end, so that all of them end in time."""
    return ends - units[0].after_search(step) - sum(unit.total(step) for unit in units[1:])
