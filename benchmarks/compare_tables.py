"""The tables of `make bench`."""

from statistics import median

from benchmarks.arithmetic import ratios, spread
from benchmarks.compare_figures import (
    RATES,
    SERVICE,
    SERVICE_WITH_KEYS,
    Round,
    accepted,
    alternatives,
    at,
    by_round,
    compared_figures,
    contenders,
    cpu_at,
    earlier,
    end_to_end,
    latencies,
    ranged,
    ratio,
    rounds,
    tail,
)
from benchmarks.compare_goals import goals_table
from benchmarks.figures import METHOD
from benchmarks.tables import Json, listed, measured_on, table

PLOTS = """
![Throughput](results/throughput.png)
![CPU per notification](results/cpu.png)
![Accepted to sent](results/accepted-to-sent.png)
![POST](results/post.png)
"""


TAILS = [
    (f"{title} p{share * 100:g}", part, share)
    for title, part in (("POST", "post"), ("accepted to sent", "to_sent"))
    for share in (0.99, 0.999)
]
"""The titles of the tail latencies, the part of the figures, and the share of requests that are faster."""


def compare(results: Json) -> str:
    """Return the comparison of the contenders."""
    if results.get("method") != METHOD:
        return "Nothing has been measured with this method yet.\n"
    latency = max(latencies(results))
    parts = [
        _method(results) + PLOTS,
        "### Throughput\n\n" + _throughput(results),
        "### This service compared with each alternative, round by round\n\n" + _ratios(results),
        f"### Latency at ordinary load, simulated latency {latency:g} s\n\n" + _ordinary(results, latency),
        f"### Tail latency at 70 % of each contender's own maximum, simulated latency {latency:g} s\n\n"
        + _tail(results, latency),
        "### CPU per notification\n\n" + _cpu(results, latency),
        "### Where an alternative is better than this service\n\n" + _better(results, latency),
        "### The cost of AUTH=on\n\n" + _side_by_side(results, {SERVICE: "AUTH=off", SERVICE_WITH_KEYS: "AUTH=on"}),
        "### Goals\n\n" + goals_table(results, latency),
        "### What is switched on and off\n\n" + _configuration(results),
    ]
    if before := earlier(results):
        parts.insert(-2, "### An earlier commit\n\n" + _side_by_side(results, {before: before, SERVICE: SERVICE}))
    return "\n".join(parts)


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
        processes = dict.fromkeys(process for each in memory for process in each)
        most = {process: max(each.get(process, 0.0) for each in memory) for process in processes}
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
    for name in alternatives(results):
        found = [ratio(results, name, latency, figure) for _, latency, figure in columns]
        rows.append([name, *(", ".join(f"{each:.2f}" for each in one.values()) or "-" for one in found)])
    return table(["times as much as", *(title for title, _, _ in columns)], rows)


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
        values = [tail(results, name, latency, part, share) for _, part, share in TAILS]
        rate = by_round(results, name, latency, lambda each: each["tail"]["rate"] if each["tail"] else None)
        rows.append([name, ranged(rate), *("-" if value is None else f"{value:,.1f}" for value in values)])
    return table(["ms", "at, requests/s", *(title for title, _, _ in TAILS)], rows)


def _cpu(results: Json, latency: float) -> str:
    rows = []
    for name in contenders(results):
        cells = [ranged(by_round(results, name, latency, cpu_at(rate))) for rate in (*RATES, None)]
        used = [each["cpu"] for each in rounds(results, name, latency) if each["cpu"]]
        median_ = {process: median(each.get(process, 0.0) for each in used) for process in used[0]} if used else {}
        rows.append([name, *cells, listed(median_) or "-"])
    head = [
        f"µs, latency {latency:g} s",
        *(f"at {rate}/s" for rate in RATES),
        "at its maximum",
        "by process at its maximum",
    ]
    return table(head, rows)


def _better(results: Json, latency: float) -> str:
    if SERVICE not in contenders(results):
        return "This service was not measured.\n"
    rows = []
    for title, at_latency, figure, more in compared_figures(latencies(results)):
        own = by_round(results, SERVICE, at_latency, figure)
        others = {
            name: values for name in alternatives(results) if (values := by_round(results, name, at_latency, figure))
        }
        better = {name: values for name, values in others.items() if own and _is_better(values, own, more=more)}
        if better:
            listed_ = ", ".join(f"{name} {ranged(values, 1)}" for name, values in better.items())
            rows.append([title, ranged(own, 1), listed_])
    for title, part, share in TAILS:
        own_tail = tail(results, SERVICE, latency, part, share)
        tails = {name: tail(results, name, latency, part, share) for name in alternatives(results)}
        below = {name: value for name, value in tails.items() if own_tail and value and value < own_tail}
        if own_tail and below:
            listed_ = ", ".join(f"{name} {value:.1f}" for name, value in below.items())
            rows.append([f"{title} at 70 %, ms", f"{own_tail:.1f}", listed_])
    return table(["figure", "this service", "better"], rows) if rows else "Nowhere.\n"


def _is_better(values: Round, own: Round, *, more: bool) -> bool:
    other_median, own_median = spread(list(values.values()))[0], spread(list(own.values()))[0]
    return other_median > own_median if more else other_median < own_median


def _side_by_side(results: Json, heads: dict[str, str]) -> str:
    """Compare two contenders, given as their names with the titles of their columns."""
    if not heads.keys() <= set(contenders(results)):
        return "Not measured.\n"
    rows = []
    for title, at_latency, figure, _ in compared_figures(latencies(results)):
        first, second = (by_round(results, name, at_latency, figure) for name in heads)
        if first and second:
            each = ratios(second, first).values()
            rows.append([title, ranged(first, 1), ranged(second, 1), ", ".join(f"{ratio:.2f}" for ratio in each)])
    return table(["", *heads.values(), "ratio by round"], rows)


def _configuration(results: Json) -> str:
    parts = []
    for name, each in results["configuration"].items():
        links = ", ".join(f"[{number}]({link})" for number, link in enumerate(each["documentation"], 1))
        parts.append(f"- **{name}**: {each['switches']}. Guarantees: {each['guarantees']}. Follows {links}.\n")
    return "".join(parts)
