"""`make bench-profile`: show where the time goes, at 200 notifications a second and at the maximum."""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.pair.report import MUCH
from benchmarks.pair.sides import working_tree
from benchmarks.pair.stack import SETTINGS, Stack, running_stack
from benchmarks.paths import RESULTS
from benchmarks.profile import statements
from benchmarks.profile import tables as profile_tables
from benchmarks.profile.figures import LoadFigures
from benchmarks.profile.flame_graph import flame_graph
from benchmarks.profile.run import Lengths, ProfiledLoad, profile
from benchmarks.profile.stacks import Stacks
from benchmarks.progress import say
from benchmarks.servers import Servers, circumstances, log_folder, read_addresses, write_json

LOADS = (ProfiledLoad("200/s", 200.0, samples=400), ProfiledLoad("the maximum", 0.0, samples=200))
FULL, QUICK = Lengths(load=10.0, sampled=10), Lengths(load=2.0, sampled=2)

Profiles = Sequence[tuple[LoadFigures, Mapping[str, Stacks]]]


def measure(lengths: Lengths) -> tuple[Profiles, dict[str, str]]:
    """Run the stack and profile all loads; return the profiles and the versions of the servers."""
    side = working_tree(v1=False)
    with log_folder() as logs:
        folder = logs / "stack"
        say("Starting the stack twice, because PostgreSQL loads pg_stat_statements only when it starts …")
        with running_stack(side, folder) as stack:
            statements.load_extension(stack)
        with running_stack(side, folder) as stack:
            statements.enable(stack)
            servers = _servers(stack)
            return [profile(stack, servers.management, load, lengths) for load in LOADS], servers.versions()


def _servers(stack: Stack) -> Servers:
    addresses = read_addresses(stack.folder / "stack.env")
    pids = {name: stack.pids[name] for name in ("postgres", "rabbitmq")}
    return Servers(stack.database, addresses["RABBITMQ_URL"], addresses["RABBITMQ_MANAGEMENT_URL"], pids, stack.folder)


def write(profiles: Profiles, results: tables.Json, folder: Path) -> None:
    """Write the figures, the flame graphs and, in the default folder, the tables of the README."""
    write_json(folder / "profile.json", results)
    graphs = folder / "profile"
    shutil.rmtree(graphs, ignore_errors=True)
    graphs.mkdir(parents=True)
    for figures, stacks in profiles:
        for process, sampled in stacks.items():
            title = f"{process} at {figures.name}"
            (graphs / profile_tables.file_name(figures.name, process)).write_text(flame_graph(title, sampled))
    if folder == RESULTS:
        tables.write("profile", profile_tables.profile(results))
    say(f"Results written to {folder}")


def main() -> None:
    """Profile the service, print the tables and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only try it out: short loads, and nothing is written")
    parser.add_argument("--results", type=Path, default=RESULTS, help="output folder (default: benchmarks/results)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Exit by raising an exception, so that the running stack is stopped.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    profiles, versions = measure(QUICK if options.quick else FULL)
    results = {
        **circumstances(began, versions),
        "settings": SETTINGS,
        "loads": [figures.as_json() for figures, _ in profiles],
    }
    say(profile_tables.profile(results))
    for figures, _ in profiles:
        if figures.cpu.other_work > MUCH:
            say(f"{figures.name}: other programs used {figures.cpu.other_work:.0f} % of a core. Do not trust this.")
    if not options.quick:
        write(profiles, results, options.results)


if __name__ == "__main__":
    main()
