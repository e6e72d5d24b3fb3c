"""The tables of `make bench`."""

from collections.abc import Callable, Mapping, Sequence

from benchmarks.arithmetic import pooled, ratios, spread
from benchmarks.figures import METHOD
from benchmarks.tables import Json, at_least, at_most, goals, listed, measured_on, table

SERVICE = "this service"
SERVICE_WITH_KEYS = "this service, AUTH=on"
RATES = ("50", "200", "500")
TAIL = 0.999

Round = Mapping[int, float]
"""A figure by round."""


def compare(results: Json) -> str:
    """Return the comparison of the contenders."""
    if results.get("method") != METHOD:
        return (
            "Nothing has been measured with this method yet. The older tables below were measured with another one.\n"
        )
    latency = max(latencies(results))
    parts = [
        _method(results),
        "### Throughput\n\n" + _throughput(results),
        "### This service compared with each alternative, round by round\n\n" + _ratios(results),
        f"### Latency at ordinary load, simulated latency {latency:g} s\n\n" + _ordinary(results, latency),
        f"### Tail latency at 70 % of each contender's own maximum, simulated latency {latency:g} s\n\n"
        + _tail(results, latency),
        "### CPU per notification\n\n" + _cpu(results, latency),
        "### Where an alternative is better than this service\n\n" + _better(results, latency),
        "### The cost of AUTH=on\n\n" + _auth(results),
        "### Goals\n\n" + _goals(results, latency),
        "### What is switched on and off\n\n" + _configuration(results),
    ]
    return "\n".join(parts)


def contenders(results: Json) -> list[str]:
    """Return the names of the contenders that were measured, this service first."""
    return [name for name in results["configuration"] if any(each["contender"] == name for each in results["figures"])]


def latencies(results: Json) -> list[float]:
    """Return the simulated latencies in seconds, in ascending order."""
    return sorted({each["latency"] for each in results["figures"]})


def rounds(results: Json, name: str, latency: float) -> list[Json]:
    """Return a contender's figures, one item for each round."""
    return [each for each in results["figures"] if each["contender"] == name and each["latency"] == latency]


def by_round(results: Json, name: str, latency: float, figure: Callable[[Json], float | None]) -> dict[int, float]:
    """Return a figure by round, for the rounds in which it was measured."""
    values = {each["round"]: figure(each) for each in rounds(results, name, latency)}
    return {round_: value for round_, value in values.items() if value is not None}


def end_to_end(figures: Json) -> float | None:
    """Return the highest sustained rate; None if there was none."""
    return figures["end_to_end"] or None


def accepted(figures: Json) -> float | None:
    """Return the accepted requests a second while nothing is sent."""
    return figures["accepted"]  # type: ignore[no-any-return]


def at(rate: str, part: str, quantile: str) -> Callable[[Json], float | None]:
    """Return a function that returns a latency at a fixed rate."""
    return lambda figures: figures["at"][rate][part][quantile] if rate in figures["at"] else None


def cpu_at(rate: str | None) -> Callable[[Json], float | None]:
    """Return a function that returns the CPU per notification at a fixed rate, or at the highest sustained rate."""

    def cpu(figures: Json) -> float | None:
        used = figures["cpu"] if rate is None else figures["at"].get(rate, {}).get("cpu")
        return sum(used.values()) if used else None

    return cpu


def tail(results: Json, name: str, latency: float, part: str) -> float | None:
    """Return the p99.9 of all rounds together at 70 % of the contender's own highest rate."""
    tails = [each["tail"] for each in rounds(results, name, latency) if each["tail"]]
    if not tails:
        return None
    return pooled([each[f"{part}_count"] for each in tails], [each[part] for each in tails], TAIL)


def ranged(values: Round, digits: int = 0) -> str:
    """Return the median with the lowest and the highest value."""
    if not values:
        return "-"
    middle, lowest, highest = spread(list(values.values()))
    text = f"{middle:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({lowest:,.{digits}f} to {highest:,.{digits}f})"


def _method(results: Json) -> str:
    failed = "".join(f"\n**{name} is missing**: {reason}\n" for name, reason in results["failed"].items())
    return (
        f"{measured_on(results)} Each figure is the median of {results['rounds']} round(s), with the lowest and the "
        f"highest in brackets. Steps took {results['step_seconds']:.1f} s, fixed rates {results['rate_seconds']:.1f} s "
        f"and tails {results['tail_seconds']:.1f} s.\n{failed}"
    )


def _throughput(results: Json) -> str:
    head = ["", "accepted/s, senders stopped"]
    head += [f"end to end/s, latency {latency:g} s" for latency in latencies(results)]
    head += ["peak MiB", "lost after kill -9"]
    rows = []
    for name in contenders(results):
        lost = results["lost"].get(name)
        memory = [each["memory"] for latency in latencies(results) for each in rounds(results, name, latency)]
        most = {process: max(each.get(process, 0.0) for each in memory) for process in memory[0]}
        rows.append(
            [
                name,
                ranged(by_round(results, name, latencies(results)[0], accepted)),
                *(_end_to_end(results, name, latency) for latency in latencies(results)),
                listed(most),
                f"{lost['lost']:.0f} of {lost['accepted']:.0f}" if lost else "-",
            ]
        )
    return table(head, rows)


def _end_to_end(results: Json, name: str, latency: float) -> str:
    variants = {each["variant"] for each in rounds(results, name, latency)} - {""}
    note = f", {', '.join(sorted(variants))}" if variants else ""
    if not all(each["search_ended"] for each in rounds(results, name, latency)):
        note += ", or more (the search ran out of time)"
    return ranged(by_round(results, name, latency, end_to_end)) + note


def _ratios(results: Json) -> str:
    if SERVICE not in contenders(results):
        return "This service was not measured.\n"
    columns = [("accepted", latencies(results)[0], accepted)]
    columns += [(f"end to end, latency {latency:g} s", latency, end_to_end) for latency in latencies(results)]
    rows = []
    for name in contenders(results):
        if name not in (SERVICE, SERVICE_WITH_KEYS):
            found = [_ratio(results, name, latency, figure) for _, latency, figure in columns]
            rows.append([name, *(", ".join(f"{each:.2f}" for each in one.values()) or "-" for one in found)])
    return table(["times as much as", *(title for title, _, _ in columns)], rows)


def _ratio(results: Json, name: str, latency: float, figure: Callable[[Json], float | None]) -> dict[int, float]:
    return ratios(by_round(results, SERVICE, latency, figure), by_round(results, name, latency, figure))


def _ordinary(results: Json, latency: float) -> str:
    columns = [(rate, part) for part in ("post", "to_sent") for rate in RATES]
    titles = {"post": "POST", "to_sent": "accepted to sent"}
    rows = []
    for name in contenders(results):
        cells = []
        for rate, part in columns:
            pair = [ranged(by_round(results, name, latency, at(rate, part, each)), 1) for each in ("p50", "p99")]
            cells.append("-" if pair == ["-", "-"] else " / ".join(pair))
        rows.append([name, *cells])
    return table(["p50 / p99 in ms", *(f"{titles[part]} at {rate}/s" for rate, part in columns)], rows)


def _tail(results: Json, latency: float) -> str:
    rows = []
    for name in contenders(results):
        values = [tail(results, name, latency, part) for part in ("post", "to_sent")]
        rate = by_round(results, name, latency, lambda each: each["tail"]["rate"] if each["tail"] else None)
        rows.append([name, ranged(rate), *("-" if value is None else f"{value:,.1f}" for value in values)])
    return table(["", "at, requests/s", "POST p99.9 ms", "accepted to sent p99.9 ms"], rows)


def _cpu(results: Json, latency: float) -> str:
    rows = []
    for name in contenders(results):
        cells = [ranged(by_round(results, name, latency, cpu_at(rate))) for rate in (*RATES, None)]
        most = rounds(results, name, latency)[-1]["cpu"]
        rows.append([name, *cells, listed(most) or "-"])
    head = [
        f"µs, latency {latency:g} s",
        *(f"at {rate}/s" for rate in RATES),
        "at its maximum",
        "by process at its maximum",
    ]
    return table(head, rows)


def compared_figures(latencies_: Sequence[float]) -> list[tuple[str, float, Callable[[Json], float | None], bool]]:
    """Return the figures in which contenders are compared: title, latency, figure, and True if more is better."""
    latency = max(latencies_)
    figures: list[tuple[str, float, Callable[[Json], float | None], bool]] = [
        ("accepted/s", min(latencies_), accepted, True),
        *((f"end to end/s, latency {each:g} s", each, end_to_end, True) for each in latencies_),
    ]
    for rate in RATES:
        for part, title in (("post", "POST"), ("to_sent", "accepted to sent")):
            figures += [
                (f"{title} {each} at {rate}/s, ms", latency, at(rate, part, each), False) for each in ("p50", "p99")
            ]
        figures.append((f"CPU at {rate}/s, µs", latency, cpu_at(rate), False))
    return figures


def _better(results: Json, latency: float) -> str:
    if SERVICE not in contenders(results):
        return "This service was not measured.\n"
    rows = []
    for title, at_latency, figure, more in compared_figures(latencies(results)):
        own = by_round(results, SERVICE, at_latency, figure)
        others = {
            name: values
            for name in contenders(results)
            if name not in (SERVICE, SERVICE_WITH_KEYS) and (values := by_round(results, name, at_latency, figure))
        }
        better = {name: values for name, values in others.items() if own and _is_better(values, own, more=more)}
        if better:
            listed_ = ", ".join(f"{name} {ranged(values, 1)}" for name, values in better.items())
            rows.append([title, ranged(own, 1), listed_])
    tails = {name: tail(results, name, latency, "to_sent") for name in contenders(results)}
    own_tail = tails.get(SERVICE)
    below = {name: value for name, value in tails.items() if own_tail and value and value < own_tail}
    if own_tail and below:
        listed_ = ", ".join(f"{name} {value:.1f}" for name, value in below.items())
        rows.append(["accepted to sent p99.9 at 70 %, ms", f"{own_tail:.1f}", listed_])
    return table(["figure", "this service", "better"], rows) if rows else "Nowhere.\n"


def _is_better(values: Round, own: Round, *, more: bool) -> bool:
    other_median, own_median = spread(list(values.values()))[0], spread(list(own.values()))[0]
    return other_median > own_median if more else other_median < own_median


def _auth(results: Json) -> str:
    if not {SERVICE, SERVICE_WITH_KEYS} <= set(contenders(results)):
        return "Not measured.\n"
    rows = []
    for title, at_latency, figure, _ in compared_figures(latencies(results)):
        off, on = (by_round(results, name, at_latency, figure) for name in (SERVICE, SERVICE_WITH_KEYS))
        if off and on:
            each = ratios(on, off).values()
            rows.append([title, ranged(off, 1), ranged(on, 1), ", ".join(f"{ratio:.2f}" for ratio in each)])
    return table(["", "AUTH=off", "AUTH=on", "ratio by round"], rows)


def _goals(results: Json, latency: float) -> str:
    lowest = latencies(results)[0]
    rows: list[Sequence[str]] = []
    required = [("BackgroundTasks", 6, 8), ("Celery", 5, 6), ("bare drivers", 1.3, 1.5)]
    for name, least, goal in required:
        found = list(_ratio(results, name, lowest, end_to_end).values())
        if found:
            rows.append(at_least(f"end to end, compared with {name}", spread(found)[0], least, goal, "times"))
    at_most_ms = [
        ("accepted to sent at 200/s, p50", at("200", "to_sent", "p50"), 30, 15),
        ("accepted to sent at 200/s, p99", at("200", "to_sent", "p99"), 150, 60),
        ("POST p99 at 500/s", at("500", "post", "p99"), 50, 20),
    ]
    for title, figure, most, goal in at_most_ms:
        if own := list(by_round(results, SERVICE, latency, figure).values()):
            rows.append(at_most(title, spread(own)[0], most, goal, "ms"))
    return goals(rows) if rows else "Not enough was measured.\n"


def _configuration(results: Json) -> str:
    parts = []
    for name, each in results["configuration"].items():
        links = ", ".join(f"[{number}]({link})" for number, link in enumerate(each["documentation"], 1))
        parts.append(f"- **{name}**: {each['switches']}. Guarantees: {each['guarantees']}. Follows {links}.\n")
    return "".join(parts)
