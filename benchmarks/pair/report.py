"""The medians, ranges and per-pair ratios of a comparison, as a table and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.pair.figures import BASE, LATENCY_RATE, WORKING_TREE, Run

OTHERS = "others"
MUCH = 20.0  # percent of a core; more work by other programs distorts the figures on a machine with two cores
SMALL = 0.01  # fraction of the total CPU; processes that never use more share a row


@dataclass(frozen=True)
class Spread:
    """The median and the range of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of the values, of which there must be at least one."""
        return cls(median(values), min(values), max(values))

    def as_json(self) -> dict[str, float]:
        """Return the spread in the form in which it is stored as JSON."""
        return {"median": self.median, "min": self.least, "max": self.most}


@dataclass(frozen=True)
class Figure:
    """A figure in the report, with a function that reads it from a run."""

    name: str
    of: Callable[[Run], float | None]
    decimals: int = 0
    compared: bool = True
    """True if comparing the two sides says something about the commits."""


@dataclass(frozen=True)
class Row:
    """A figure for both sides; a side is None if it does not run the process in question."""

    figure: Figure
    base: Spread | None
    tree: Spread | None
    ratio: Spread | None
    """The ratio of the working tree to BASE within each pair."""

    def as_json(self) -> dict[str, Any]:
        """Return the row in the form in which it is stored as JSON."""
        spreads = {"base": self.base, "working_tree": self.tree, "ratio": self.ratio}
        return {"figure": self.figure.name} | {name: each and each.as_json() for name, each in spreads.items()}


def rows(runs: Sequence[Run]) -> list[Row]:
    """Summarize the complete pairs."""
    by_side = {side: {run.pair: run for run in runs if run.side == side} for side in (BASE, WORKING_TREE)}
    pairs = [(run, by_side[WORKING_TREE][pair]) for pair, run in by_side[BASE].items() if pair in by_side[WORKING_TREE]]
    return [_row(figure, pairs) for figure in _figures(runs)] if pairs else []


def table(summary: Sequence[Row]) -> Table:
    """Return a table for the terminal that shows medians, with ranges in parentheses."""
    shown = Table(box=None, header_style="bold")
    shown.add_column()
    for head in ("BASE", "working tree", "ratio per pair"):
        shown.add_column(head, justify="right")
    for row in summary:
        decimals = row.figure.decimals
        ratio = _text(row.ratio, 3) if row.figure.compared else ""
        shown.add_row(row.figure.name, _text(row.base, decimals), _text(row.tree, decimals), ratio)
    return shown


def remarks(runs: Sequence[Run]) -> list[str]:
    """Return the reasons not to trust the table, if there are any."""
    found = [
        f"{run.side}, pair {run.pair}: {run.offered:,.0f} requests/s were offered, {run.cpu.accepted:,.0f}/s accepted, "
        f"{run.cpu.failed} failed. The rate was not reached, so the CPU is for a lower load. Try a lower --rate."
        for run in runs
        if not run.cpu.rate_reached
    ]
    found += [
        f"{run.side}, pair {run.pair}: {run.latency.failed} requests failed at {LATENCY_RATE:.0f}/s."
        for run in runs
        if run.latency.failed
    ]
    found += [
        f"{run.side}, pair {run.pair}: other programs used {most:.0f} % of a core. Do not trust this pair."
        for run in runs
        if (most := max(run.cpu.other_work, run.latency.other_work)) > MUCH
    ]
    trees = {side: {run.tree for run in runs if run.side == side} for side in (BASE, WORKING_TREE)}
    if len(trees[WORKING_TREE]) > 1:
        found.append("The working tree changed while it was measured, so its runs did not all measure the same code.")
    elif trees[BASE] == trees[WORKING_TREE]:
        found.append("The working tree is identical to BASE, so every difference is noise.")
    return found


def _figures(runs: Sequence[Run]) -> list[Figure]:
    latencies = [
        Figure(f"{what} {share}, ms", of, decimals=1)
        for what, share, of in (
            ("POST", "p50", lambda run: run.latency.post["p50"]),
            ("POST", "p99", lambda run: run.latency.post["p99"]),
            ("accepted to sent", "p50", lambda run: run.latency.to_sent["p50"]),
            ("accepted to sent", "p99", lambda run: run.latency.to_sent["p99"]),
        )
    ]
    return [
        Figure("CPU per notification, µs", lambda run: run.cpu.total),
        *_processes(runs),
        *latencies,
        Figure("accepted, requests/s", lambda run: run.cpu.accepted, compared=False),
        Figure("load generator, µs", lambda run: run.cpu.load_generator, compared=False),
        Figure("other work, % of a core", lambda run: run.cpu.other_work, compared=False),
        Figure(f"  at {LATENCY_RATE:.0f} requests/s", lambda run: run.latency.other_work, compared=False),
    ]


def _processes(runs: Sequence[Run]) -> list[Figure]:
    """Return a figure for each process that uses a lot of CPU, in descending order, and one for all the others."""
    costs: dict[str, float] = {}
    for run in runs:
        for name, used in run.cpu.processes.items():
            costs[name] = max(costs.get(name, 0.0), used / run.cpu.total)
    large = sorted((name for name, cost in costs.items() if cost >= SMALL), key=lambda name: -costs[name])
    small = costs.keys() - set(large)
    figures = [Figure(f"  {name}", _process(name)) for name in large]
    if small:
        figures.append(
            Figure(f"  {OTHERS}", lambda run: sum(run.cpu.processes.get(name, 0.0) for name in small), compared=False)
        )
    return figures


def _process(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.cpu.processes.get(name)


def _row(figure: Figure, pairs: Sequence[tuple[Run, Run]]) -> Row:
    values = [(figure.of(base), figure.of(tree)) for base, tree in pairs]
    base = [before for before, _ in values if before is not None]
    tree = [after for _, after in values if after is not None]
    ratios = [after / before for before, after in values if before and after is not None]
    return Row(
        figure,
        Spread.of(base) if base else None,
        Spread.of(tree) if tree else None,
        Spread.of(ratios) if ratios else None,
    )


def _text(spread: Spread | None, decimals: int) -> str:
    if spread is None:
        return "-"
    middle, least, most = (f"{value:,.{decimals}f}" for value in (spread.median, spread.least, spread.most))
    return f"{middle} ({least}-{most})"
