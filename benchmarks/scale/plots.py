"""The plots of `make bench-scale`."""

from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks import tables
from benchmarks.plots import COLOURS, bars, save


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
    bars(cpu, waiting, [sum(each["cpu"].values()) for each in backlogs])
    cpu.set_title("CPU µs per notification by backlog")
    for name, colour in zip(backlogs[0]["memory"], COLOURS, strict=False):
        memory.plot(waiting, [each["memory"][name] for each in backlogs], marker="o", color=colour, label=name)
    memory.set_ylim(0)
    memory.set_title("peak MiB by backlog")
    memory.legend(frameon=False)
    figure.tight_layout()
    save(figure, folder / "scale")
