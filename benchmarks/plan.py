"""How the time of a benchmark is divided: the length of each step follows from the number of contenders and rounds."""

from dataclasses import dataclass

# What a measurement takes besides the loads themselves, in seconds. These are estimates for two cores; a search also
# ends early if its contender's time is used up.
START = 5.0  # emptying the servers, starting the processes and warming them up
STEP = 1.2  # starting the load generator, and waiting until everything is sent
LOSSES = 20.0  # killing a contender and waiting for what is sent late
OTHER = 60.0  # starting the servers and writing the results

FIRST_SEARCH, LATER_SEARCHES = 7, 3  # steps
RESTARTS = 1.5  # per contender and latency, because a step was far beyond the contender's capacity
LATENCIES = 2
RATE, TAIL = 1.5, 2.5  # lengths of these loads in steps
SHORTEST, LONGEST = 1.5, 6.0  # seconds


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


def plan(minutes: float, contenders: int, rounds: int, rates: int) -> Plan:
    """Return the longest steps with which `contenders` are measured in `minutes`."""
    searches = LATENCIES * (FIRST_SEARCH + LATER_SEARCHES * (rounds - 1))
    steps = searches + rounds * (1 + RATE * rates + TAIL)  # of the plan's length
    loads = searches + rounds * (2 + rates)
    starts = LATENCIES * (rounds + RESTARTS)
    each = loads * STEP + starts * START + LOSSES
    step = ((minutes * 60 - OTHER) / contenders - each) / steps
    if step < SHORTEST:
        raise ValueError(f"{minutes:g} minutes are too few for {contenders} contenders in {rounds} rounds")
    return Plan(min(step, LONGEST))
