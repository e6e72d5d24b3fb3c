"""The figures of `make bench` that its tables and plots show, computed from the raw results."""

from collections.abc import Callable, Mapping, Sequence

from benchmarks.arithmetic import pooled, ratios, spread
from benchmarks.tables import Json

SERVICE = "this service"
SERVICE_WITH_KEYS = "this service, AUTH=on"
RATES = ("50", "200", "500")

Round = Mapping[int, float]
"""A figure by round."""
Figure = Callable[[Json], float | None]
"""Returns a figure of one round; None if it was not measured."""


def contenders(results: Json) -> list[str]:
    """Return the names of the contenders that were measured, this service first."""
    return [name for name in results["configuration"] if any(each["contender"] == name for each in results["figures"])]


def alternatives(results: Json) -> list[str]:
    """Return the names of the contenders that were measured, without this service in any form."""
    return [name for name in contenders(results) if not name.startswith(SERVICE)]


def earlier(results: Json) -> str | None:
    """Return the name of this service at an earlier commit; None if it was not measured."""
    return next((name for name in contenders(results) if name.startswith(f"{SERVICE} at ")), None)


def latencies(results: Json) -> list[float]:
    """Return the simulated latencies in seconds, in ascending order."""
    return sorted({each["latency"] for each in results["figures"]})


def rounds(results: Json, name: str, latency: float) -> list[Json]:
    """Return a contender's figures, one item for each round."""
    return [each for each in results["figures"] if each["contender"] == name and each["latency"] == latency]


def by_round(results: Json, name: str, latency: float, figure: Figure) -> dict[int, float]:
    """Return a figure by round, for the rounds in which it was measured."""
    values = {each["round"]: figure(each) for each in rounds(results, name, latency)}
    return {round_: value for round_, value in values.items() if value is not None}


def end_to_end(figures: Json) -> float | None:
    """Return the highest sustained rate; None if there was none."""
    return figures["end_to_end"] or None


def accepted(figures: Json) -> float | None:
    """Return the accepted requests a second while nothing is sent."""
    return figures["accepted"]  # type: ignore[no-any-return]


def at(rate: str, part: str, quantile: str) -> Figure:
    """Return a function that returns a latency at a fixed rate."""
    return lambda figures: figures["at"][rate][part][quantile] if rate in figures["at"] else None


def cpu_at(rate: str | None) -> Figure:
    """Return a function that returns the CPU per notification at a fixed rate, or at the highest sustained rate."""

    def cpu(figures: Json) -> float | None:
        used = figures["cpu"] if rate is None else figures["at"].get(rate, {}).get("cpu")
        return sum(used.values()) if used else None

    return cpu


def tail(results: Json, name: str, latency: float, part: str, share: float = 0.999) -> float | None:
    """Return a high quantile of all rounds together at 70 % of the contender's own highest rate."""
    tails = [each["tail"] for each in rounds(results, name, latency) if each["tail"]]
    if not tails:
        return None
    return pooled([each[f"{part}_count"] for each in tails], [each[part] for each in tails], share)


def ranged(values: Round, digits: int = 0) -> str:
    """Return the median with the lowest and the highest value."""
    if not values:
        return "-"
    middle, lowest, highest = spread(list(values.values()))
    text = f"{middle:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({lowest:,.{digits}f} to {highest:,.{digits}f})"


def ratio(results: Json, name: str, latency: float, figure: Figure) -> dict[int, float]:
    """Return by round how many times as much this service has as a contender."""
    return ratios(by_round(results, SERVICE, latency, figure), by_round(results, name, latency, figure))


def compared_figures(latencies_: Sequence[float]) -> list[tuple[str, float, Figure, bool]]:
    """Return the figures in which contenders are compared: title, latency, figure, and True if more is better."""
    latency = max(latencies_)
    figures: list[tuple[str, float, Figure, bool]] = [
        ("accepted/s", min(latencies_), accepted, True),
        *((f"end to end/s, latency {each:g} s", each, end_to_end, True) for each in latencies_),
    ]
    for rate in RATES:
        for part, title in (("post", "POST"), ("to_sent", "accepted to sent")):
            figures += [
                (f"{title} {each} at {rate}/s, ms", latency, at(rate, part, each), False) for each in ("p50", "p99")
            ]
        figures.append((f"CPU at {rate}/s, µs", latency, cpu_at(rate), False))
    figures.append(("CPU at the maximum, µs", latency, cpu_at(None), False))
    return figures
