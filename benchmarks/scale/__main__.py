"""`make bench-scale`: measure this service at scale."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.paths import RESULTS
from benchmarks.progress import say
from benchmarks.scale import plots
from benchmarks.scale import tables as scale_tables
from benchmarks.scale.messages import messages
from benchmarks.scale.outage import outage
from benchmarks.scale.partitions import partitions
from benchmarks.scale.queued import backlog, scaling, sender_alone, side_by_side, status_writer_alone
from benchmarks.scale.retries import retries
from benchmarks.scale.soak import soak
from benchmarks.scale.stored import stored
from benchmarks.servers import Servers, circumstances, log_folder, running_servers, write_json

SECTIONS: dict[str, Callable[[Servers, Path, float], dict[str, Any]]] = {
    "status_writer": status_writer_alone,
    "sender": sender_alone,
    "scaling": scaling,
    "side_by_side": side_by_side,
    "backlog": backlog,
    "stored": stored,
    "partitions": partitions,
    "messages": messages,
    "retries": retries,
    "outage": outage,
    "soak": soak,
}
OPTIONAL = {"soak"}
"""The parts that run only if they are asked for."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), help="run only these parts, without writing results"
    )
    parser.add_argument("--soak", action="store_true", help="only load the service for an hour, and store that result")
    parser.add_argument("--update", action="store_true", help="with --only: store the results beside the others")
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="multiply all counts by this, for a trial run (default: 1)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="output folder (default: benchmarks/results)")
    return parser


def main() -> None:
    """Run the measurements and write their results."""
    options = _parser().parse_args()
    names = ["soak"] if options.soak else options.only or [name for name in SECTIONS if name not in OPTIONAL]
    sections: dict[str, Any] = {}
    with log_folder() as logs, running_servers() as servers:
        versions = servers.versions()
        for name in names:
            began = time.monotonic()
            say(f"{name}: {SECTIONS[name].__doc__}")
            sections[name] = {
                **SECTIONS[name](servers, logs, options.fraction),
                "circumstances": circumstances(began, versions),
            }
            say(scale_tables.SECTIONS[name](sections[name]))
    if options.fraction != 1 or (options.only and not options.update):
        return
    file = options.results / "scale.json"
    results = {**(tables.read(file) if file.exists() else {}), "fraction": options.fraction, **sections}
    if not (options.soak or options.only):
        results |= _total(sections)
    write_json(file, results)
    plots.scale(results, options.results)
    if options.results == RESULTS:
        tables.write("scale", scale_tables.scale(results))
    say(f"Results written to {options.results}")


def _total(sections: dict[str, Any]) -> dict[str, Any]:
    """Return the circumstances of all parts together."""
    parts = [each["circumstances"] for each in sections.values()]
    return {**parts[-1], "minutes": sum(each["minutes"] for each in parts)}


if __name__ == "__main__":
    main()
