"""The benchmark's arithmetic, as pure functions."""

import math
import random
from collections.abc import Mapping, Sequence
from statistics import median

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
WORST = 0.01  # fraction of the latencies that are kept, so that rounds can be pooled
KEPT_UP = 0.97  # fraction of the offered requests that must be accepted in time
GROWTH = 0.02  # fraction of the offered requests by which the backlog may grow; smaller growth is noise
DEVIATIONS = 2.0  # standard deviations by which a Poisson process changes what is in flight, and which are noise too


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the arrival times of a Poisson process, in seconds from its start."""
    gaps = random.Random(seed)
    arrivals, at = [], gaps.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += gaps.expovariate(rate)
    return arrivals


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of the sorted values that is not exceeded by at least `share` of them (nearest rank)."""
    return ordered[max(math.ceil(len(ordered) * share - 1e-9), 1) - 1]


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the p50, p99 and p99.9 of times in seconds, converted to milliseconds."""
    ordered = sorted(seconds)
    return {name: quantile(ordered, share) * 1000 for name, share in QUANTILES.items()}


def worst(seconds: Sequence[float]) -> list[float]:
    """Return the largest of the times in milliseconds, which are enough to compute the highest quantiles."""
    ordered = sorted(seconds)
    return [each * 1000 for each in ordered[len(ordered) - max(1, math.ceil(len(ordered) * WORST)) :]]


def pooled(counts: Sequence[int], worst_of_each: Sequence[Sequence[float]], share: float) -> float:
    """Return a quantile of several rounds together, from the number of values and the largest values of each round."""
    total = sum(counts)
    largest = sorted((each for one in worst_of_each for each in one), reverse=True)
    above = total - max(math.ceil(total * share - 1e-9), 1)
    if above >= len(largest):
        raise ValueError(f"{len(largest)} of {total} values are not enough for the quantile {share}")
    return largest[above]


def window_count(times: Sequence[float], begin: float, end: float) -> int:
    """Return how many of the times lie in the window."""
    return sum(begin <= at < end for at in times)


def sustained(*, due: int, accepted: int, sent: int, in_flight: float, failed: int) -> bool:
    """Return whether a load was sustained, from what was due, accepted and sent in the same window.

    No request may fail, nearly all must be accepted in time, and the backlog must not grow. `in_flight` is the number
    of deliveries that the provider's latency keeps in progress on average: it varies, because arrivals are random.
    """
    allowed = GROWTH * due + DEVIATIONS * math.sqrt(in_flight)
    return not failed and due > 0 and accepted >= KEPT_UP * due and accepted - sent <= allowed


def ratios(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """Return own / other by round, for the rounds in which both were measured."""
    return {round_: own[round_] / other[round_] for round_ in own if other.get(round_)}


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the lowest and the highest value."""
    return median(values), min(values), max(values)


def steady_rate(times: Sequence[float]) -> float:
    """Return the rate without the first and last tenths, during which processes start and queues run dry."""
    first, last = len(times) // 10, len(times) * 9 // 10
    return (last - first) / (times[last] - times[first])


def next_candidate(lowest: float, highest: float, candidate: float, change: float) -> float:
    """Return the rate to try next, between the highest sustained (0: none yet) and the lowest unsustained rate.

    It changes by at most the factor `change`, because a step far beyond a contender's capacity takes long and shows
    nothing.
    """
    return min((lowest + highest) / 2, lowest * change) if lowest else candidate / change
