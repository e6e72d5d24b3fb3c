"""Plots of the results, written as PNG and SVG: what all of them share."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLOURS = ["#1b7f79", "#c8553d", "#e0a458", "#5b5f97", "#6a994e", "#a26769", "#3d5a80", "#98c1d9", "#8d6a9f", "#9a8c98"]
mpl.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "notify", "figure.dpi": 110}
)


def bars(axis: plt.Axes, names: list[str], values: list[float]) -> None:
    """Draw a bar with its value for each name."""
    bars = axis.bar(names, values, color=COLOURS[: len(names)])
    axis.bar_label(bars, fmt="{:,.0f}")
    axis.tick_params(axis="x", labelrotation=20)


def save(figure: Figure, file: Path) -> None:
    """Write the figure as PNG and SVG."""
    figure.savefig(file.with_suffix(".png"))
    figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
