"""`make bench`: measure each contender on the same servers, one after the other, in several rounds."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots, tables
from benchmarks.contenders import CONTENDERS, Contender, Running
from benchmarks.measure import (
    ContenderFigures,
    count_lost,
    find_accepted,
    find_end_to_end,
    find_latencies,
    warm_up,
)
from benchmarks.progress import say
from benchmarks.servers import PROJECT, Servers, circumstances, log_folder, running_servers, write_json

RESULTS = PROJECT / "benchmarks" / "results"
LATENCIES = (0.0, 0.2)  # simulated latencies of the provider in seconds
RATES = (50.0, 200.0, 500.0)  # requests a second
ROUNDS = 2
STEP = 4.0  # seconds
KILL_RATE = 0.4  # fraction of the contender's end-to-end rate
KILL_PATIENCE = 45.0  # seconds; a killed gateway's outbox leases last 30


def measure(
    contender: Contender, servers: Servers, latency: float, round_: int, logs: Path, seconds: float
) -> ContenderFigures:
    """Measure one contender, except for its losses after a crash."""
    figures = ContenderFigures(contender.name, latency, round_)
    running = Running(contender, servers, latency, logs)
    try:
        running.start()
        warm_up(running)
        find_end_to_end(running, figures, seconds)
        find_latencies(running, figures, RATES, seconds)
        figures.memory = running.peak_memory()
    finally:
        running.stop()
    alone = Running(contender, servers, latency, logs, without_sending=True)
    try:
        alone.start()
        find_accepted(alone, figures, seconds)
    finally:
        alone.stop()
    return figures


def measure_losses(
    contender: Contender, servers: Servers, end_to_end: float, logs: Path, seconds: float
) -> dict[str, float]:
    """Count the notifications that are lost when all of the contender's processes are killed with `kill -9`."""
    running = Running(contender, servers, LATENCIES[-1], logs)
    try:
        running.start()
        return count_lost(running, max(KILL_RATE * end_to_end, 5.0), seconds, KILL_PATIENCE)
    finally:
        running.stop()


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=[each.name for each in CONTENDERS], help="run only these contenders"
    )
    parser.add_argument("--seconds", type=float, default=STEP, help="length of one step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="number of rounds (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="output folder (default: benchmarks/results)")
    options = parser.parse_args()
    contenders = [each for each in CONTENDERS if not options.only or each.name in options.only]
    began = time.monotonic()
    all_figures: list[ContenderFigures] = []
    losses: dict[str, dict[str, float]] = {}
    with log_folder() as logs, running_servers() as servers:
        versions = servers.versions()
        for round_ in range(1, options.rounds + 1):
            for latency in LATENCIES:
                for contender in contenders:
                    figures = measure(contender, servers, latency, round_, logs, options.seconds)
                    all_figures.append(figures)
                    _say(figures)
        for contender in contenders:
            slowest = min(each.end_to_end for each in all_figures if each.contender == contender.name)
            losses[contender.name] = measure_losses(contender, servers, slowest, logs, options.seconds)
            say(f"{contender.name}: killed under load, {losses[contender.name]}")
    results = {
        **circumstances(began, versions),
        "step_seconds": options.seconds,
        "figures": [figures.as_json() for figures in all_figures],
        "lost": losses,
    }
    write_json(options.results / "compare.json", results)
    plots.compare(results, options.results)
    if options.results == RESULTS:
        tables.write("compare", tables.compare(results))
    say(f"Results written to {options.results}")


def _say(figures: ContenderFigures) -> None:
    say(
        f"round {figures.round}, latency {figures.latency} s, {figures.contender}: "
        f"accepted {figures.accepted:.0f}/s, end to end {figures.end_to_end:.0f}/s (tried: {_tried(figures.tried)})\n"
        f"CPU µs per notification: {tables.listed(figures.cpu)}; peak MiB: {tables.listed(figures.memory)}\n"
        f"POST {_milliseconds(figures.post)}; accepted to sent {_milliseconds(figures.to_sent)}"
    )


def _tried(tried: Sequence[tuple[float, bool]]) -> str:
    return ", ".join(f"{rate:.0f} {'sustained' if sustained else 'not sustained'}" for rate, sustained in tried)


def _milliseconds(by_rate: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{rate}/s: {each['p50']:.0f}/{each['p99']:.0f} ms" for rate, each in by_rate.items()) or "-"


if __name__ == "__main__":
    main()
