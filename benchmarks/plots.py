"""Plots of the results, written as PNG and SVG."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks import tables

COLOURS = ["#1b7f79", "#c8553d", "#e0a458", "#5b5f97"]
mpl.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "notify", "figure.dpi": 110}
)


def compare(results: tables.Json, folder: Path) -> None:
    """Plot each contender's throughput, CPU by process, and latency."""
    names = tables.contenders(results)
    latencies = sorted({figures["latency"] for figures in results["figures"]})
    _save(_throughput(results, names, latencies), folder / "throughput")
    _save(_cpu(results, names, latencies[0]), folder / "cpu")
    _save(_to_sent(results, names, latencies[-1]), folder / "accepted-to-sent")


def scale(results: tables.Json, folder: Path) -> None:
    """Plot the send rate by the number of senders, and CPU and memory by the size of the backlog."""
    figure, (senders, cpu, memory) = plt.subplots(1, 3, figsize=(10, 3))
    counts = [each["senders"] for each in results["scaling"]["figures"]]
    rates = [each["rate"] for each in results["scaling"]["figures"]]
    senders.plot(counts, [rates[0] * count / counts[0] for count in counts], ":", color="grey", label="linear")
    senders.plot(counts, rates, "-", marker="o", color=COLOURS[0], label="measured")
    senders.set_title(f"sent/s by senders, latency {results['scaling']['latency']:g} s")
    senders.legend(frameon=False)
    backlogs = results["backlog"]["figures"]
    waiting = [f"{each['waiting']:,}" for each in backlogs]
    _bars(cpu, waiting, [sum(each["cpu"].values()) for each in backlogs])
    cpu.set_title("CPU µs per notification by backlog")
    for name, colour in zip(backlogs[0]["memory"], COLOURS, strict=False):
        memory.plot(waiting, [each["memory"][name] for each in backlogs], marker="o", color=colour, label=name)
    memory.set_ylim(0)
    memory.set_title("peak MiB by backlog")
    memory.legend(frameon=False)
    figure.tight_layout()
    _save(figure, folder / "scale")


def _throughput(results: tables.Json, names: list[str], latencies: list[float]) -> Figure:
    figure, axes = plt.subplots(1, len(latencies) + 1, figsize=(10, 3))
    for axis, latency in zip(axes, latencies, strict=False):
        _bars(axis, names, [tables.averaged(results, name, latency)["end_to_end"] for name in names])
        axis.set_title(f"end to end/s, latency {latency:g} s")
    _bars(axes[-1], names, [tables.averaged(results, name, latencies[0])["accepted"] for name in names])
    axes[-1].set_title("accepted/s, senders stopped")
    figure.tight_layout()
    return figure


def _cpu(results: tables.Json, names: list[str], latency: float) -> Figure:
    figure, axis = plt.subplots(figsize=(10, 3))
    palette = plt.get_cmap("tab20").colors
    seen: dict[str, tuple[float, ...]] = {}
    for place, name in enumerate(names):
        left = 0.0
        for process, used in tables.averaged(results, name, latency)["cpu"].items():
            label = None if process in seen else process
            colour = seen.setdefault(process, palette[len(seen)])
            axis.barh(place, used, left=left, color=colour, label=label)
            left += used
        axis.text(left, place, f" {left:.0f}", va="center")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_title(f"CPU microseconds per notification, latency {latency:g} s")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _to_sent(results: tables.Json, names: list[str], latency: float) -> Figure:
    figure, axis = plt.subplots(figsize=(10, 3))
    for name, colour in zip(names, COLOURS, strict=False):
        by_rate = tables.averaged(results, name, latency)["to_sent"]
        rates = [float(rate) for rate in by_rate]
        for quantile, style in (("p50", "-"), ("p99", ":")):
            points = [max(each[quantile], 0.1) for each in by_rate.values()]
            axis.plot(rates, points, style, marker="o", color=colour, label=f"{name}, {quantile}" if rates else None)
    axis.set_yscale("log")
    axis.set_xlabel("offered requests/s")
    axis.set_ylabel("ms")
    axis.set_title(f"accepted to sent, minus the simulated latency of {latency:g} s")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _bars(axis: plt.Axes, names: list[str], values: list[float]) -> None:
    bars = axis.bar(names, values, color=COLOURS[: len(names)])
    axis.bar_label(bars, fmt="{:,.0f}")
    axis.tick_params(axis="x", labelrotation=20)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file.with_suffix(".png"))
    figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
