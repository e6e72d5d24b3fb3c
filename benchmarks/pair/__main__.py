"""`make bench-pair BASE=<commit>`: compare the working tree with a commit, in pairs of runs on this machine."""

import argparse
import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.checkouts import FOLDER
from benchmarks.pair import report
from benchmarks.pair.figures import LATENCY_RATE, Run
from benchmarks.pair.run import Load, measure_cpu, measure_latency, warm_up
from benchmarks.pair.sides import Side, base, tree, working_tree
from benchmarks.pair.stack import SETTINGS, fresh_stack, prepare_template
from benchmarks.progress import say
from benchmarks.servers import machine, write_json

PAIRS = 5
RATE = 1500.0  # requests a second
SECONDS = 15.0
LEGEND = (
    "Medians of the pairs, with ranges in parentheses. A ratio is working tree / BASE within one pair. The load "
    f"generator is not part of the CPU per notification. Latencies are at {LATENCY_RATE:.0f} requests/s."
)
NARROWEST_TABLE = 110  # columns; rich would assume 80 if the output is not a terminal


def measure(side: Side, pair: int, load: Load, stacks: Path) -> Run:
    """Start one side on a fresh stack, and measure it."""
    prefix = f"pair {pair}, {side.name}"
    say(f"{prefix}: starting …")
    files = tree(side)
    with fresh_stack(side, stacks / "running", stacks / f"{side.label}-data") as stack:
        say(f"{prefix}: warming up, then {load.rate:,.0f} requests/s for {load.seconds:g} s …")
        warm_up(stack, load.rate)
        cpu = measure_cpu(stack, load)
        say(f"{prefix}: {LATENCY_RATE:.0f} requests/s for {load.seconds:g} s …")
        latency = measure_latency(stack, load.seconds)
    run = Run(pair, side.name, side.checkout.commit, files, load.rate, cpu, latency)
    say(
        f"{prefix}: {cpu.total:.0f} µs per notification at {cpu.accepted:,.0f}/s, "
        f"POST {latency.post['p50']:.1f} / {latency.post['p99']:.1f} ms, "
        f"accepted to sent {latency.to_sent['p50']:.1f} / {latency.to_sent['p99']:.1f} ms (p50 / p99)"
    )
    return run


def measure_pairs(sides: tuple[Side, Side], pairs: int, load: Load, results: Path) -> list[Run]:
    """Measure both sides alternately, and store each run as soon as it has finished."""
    stacks = FOLDER / "stacks"
    for side in sides:
        say(f"Preparing {side.name} ({side.checkout.commit[:12]}) …")
        prepare_template(side, stacks / "running", stacks / f"{side.label}-data")
    runs: list[Run] = []
    began = time.monotonic()
    for pair in range(1, pairs + 1):
        # Each side goes first in every other pair, so that changes in the machine's speed favour neither.
        for side in sides if pair % 2 else sides[::-1]:
            run = measure(side, pair, load, stacks)
            write_json(results / f"pair-{pair}-{side.label}.json", run.as_json())
            runs.append(run)
        if pair < pairs:
            minutes = (time.monotonic() - began) / pair * (pairs - pair) / 60
            say(f"{pair} of {pairs} pairs done, about {minutes:.0f} minutes left")
    shutil.rmtree(stacks)
    return runs


def show(runs: Sequence[Run], results: Path) -> None:
    """Print the summary and store it."""
    summary, remarks = report.rows(runs), report.remarks(runs)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, NARROWEST_TABLE)
    console.print()
    console.print(report.table(summary))
    console.print(LEGEND, style="dim")
    console.print()
    for remark in remarks:
        console.print(remark, markup=False, style="yellow")
    write_json(
        results / "summary.json",
        {"machine": machine(), "settings": SETTINGS, "rows": [row.as_json() for row in summary], "remarks": remarks},
    )
    say(f"Results written to {results}")


@contextmanager
def exclusive() -> Iterator[None]:
    """Lock the folder against other comparisons."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"Another comparison is running in {FOLDER}.") from None
        yield


def main() -> None:
    """Run the comparison and show its results."""
    parser = argparse.ArgumentParser(prog='make bench-pair BASE=<commit> ARGS="…"', description=__doc__)
    parser.add_argument("--base", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="runs of each side (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=RATE, help="requests a second while CPU is measured (default: %(default)g)"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="length of each of the two loads of a run (default: %(default)g)"
    )
    parser.add_argument(
        "--v1", action="store_true", help="post to /v1 in the working tree, and to the older URL in BASE"
    )
    options = parser.parse_args()
    if min(options.pairs, options.rate, options.seconds) <= 0:
        parser.error("--pairs, --rate and --seconds must be positive")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Exit by raising an exception, so that the running stack is stopped.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with exclusive():
            sides = base(options.base), working_tree(v1=options.v1)
            results = FOLDER / "results" / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
            show(measure_pairs(sides, options.pairs, Load(options.rate, options.seconds), results), results)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
