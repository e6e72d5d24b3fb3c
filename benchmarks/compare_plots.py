"""The plots of `make bench`."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.arithmetic import spread
from benchmarks.compare_figures import (
    RATES,
    accepted,
    at,
    by_round,
    contenders,
    end_to_end,
    latencies,
    rounds,
)
from benchmarks.plots import COLOURS, save
from benchmarks.tables import Json


def compare(results: Json, folder: Path) -> None:
    """Plot each contender's throughput, CPU by process, and latencies."""
    save(_throughput(results), folder / "throughput")
    save(_cpu(results), folder / "cpu")
    save(_latencies(results, "to_sent", "accepted to sent"), folder / "accepted-to-sent")
    save(_latencies(results, "post", "POST"), folder / "post")


def _throughput(results: Json) -> Figure:
    names, all_latencies = contenders(results), latencies(results)
    figure, axes = plt.subplots(1, len(all_latencies) + 1, figsize=(12, 0.5 * len(names) + 1), sharey=True)
    for axis, latency in zip(axes, all_latencies, strict=False):
        _ranged_bars(axis, names, [by_round(results, name, latency, end_to_end) for name in names])
        axis.set_title(f"end to end/s, latency {latency:g} s")
    _ranged_bars(axes[-1], names, [by_round(results, name, all_latencies[0], accepted) for name in names])
    axes[-1].set_title("accepted/s, senders stopped")
    figure.tight_layout()
    return figure


def _ranged_bars(axis: plt.Axes, names: list[str], values: list[dict[int, float]]) -> None:
    """Draw the median of the rounds as a bar, and their range as a line."""
    for place, rounds_ in enumerate(values):
        middle, lowest, highest = spread(list(rounds_.values())) if rounds_ else (0.0, 0.0, 0.0)
        axis.barh(place, middle, color=COLOURS[place % len(COLOURS)])
        axis.plot([lowest, highest], [place, place], color="black", linewidth=1)
        axis.text(highest, place, f" {middle:,.0f}", va="center")
    axis.set_yticks(range(len(names)), names)
    axis.margins(x=0.2)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()


def _cpu(results: Json) -> Figure:
    names, latency = contenders(results), latencies(results)[-1]
    figure, axis = plt.subplots(figsize=(10, 0.4 * len(names) + 1))
    palette = plt.get_cmap("tab20").colors
    seen: dict[str, tuple[float, ...]] = {}
    for place, name in enumerate(names):
        left = 0.0
        for process, used in rounds(results, name, latency)[-1]["cpu"].items():
            label = None if process in seen else process
            colour = seen.setdefault(process, palette[len(seen) % len(palette)])
            axis.barh(place, used, left=left, color=colour, label=label)
            left += used
        axis.text(left, place, f" {left:.0f}", va="center")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_title(f"CPU microseconds per notification at the highest rate, latency {latency:g} s")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _latencies(results: Json, part: str, title: str) -> Figure:
    latency = latencies(results)[-1]
    figure, axis = plt.subplots(figsize=(10, 4))
    for number, name in enumerate(contenders(results)):
        for quantile, style in (("p50", "-"), ("p99", ":")):
            found = {rate: by_round(results, name, latency, at(rate, part, quantile)) for rate in RATES}
            points = {float(rate): spread(list(values.values()))[0] for rate, values in found.items() if values}
            label = name if quantile == "p50" and points else None
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(
                list(points), [max(each, 0.1) for each in points.values()], style, marker="o", color=colour, label=label
            )
    axis.set_yscale("log")
    axis.set_xlabel("offered requests/s")
    axis.set_ylabel("ms; solid: p50, dotted: p99")
    axis.set_title(f"{title}, simulated latency {latency:g} s (not included)")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    return figure
