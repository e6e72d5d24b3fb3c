"""`make bench`: measure each contender on the same servers, one after the other, in several rounds."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import compare_plots, compare_tables, tables
from benchmarks.contenders.contender import Contender
from benchmarks.contenders.registry import CONTENDERS, contender, selectable
from benchmarks.contenders.service import service_at
from benchmarks.figures import METHOD, ContenderFigures
from benchmarks.measure import (
    best_variant,
    count_lost,
    find_end_to_end,
    measure_accepted,
    measure_rates,
    measure_tail,
    stop_sending,
)
from benchmarks.paths import RESULTS
from benchmarks.plan import Plan, plan, search_deadline
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.schedule import LATENCIES, RATES, schedule
from benchmarks.servers import Servers, circumstances, log_folder, running_servers, write_json
from benchmarks.steps import NotSent, check, warm_up

ROUNDS = 3
MINUTES = 43.0
KILL_RATE = 0.4  # fraction of the contender's end-to-end rate in that round
KILL_PATIENCE = 45.0  # seconds; a killed gateway's outbox leases last 30
QUICK_RATE, QUICK_SECONDS = 50.0, 2.0


@dataclass
class Benchmark:
    """The measurements of all contenders."""

    servers: Servers
    logs: Path
    plan: Plan
    rounds: int
    figures: list[ContenderFigures] = field(default_factory=list)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """The contenders that did not send what they accepted, with the reason."""
    chosen: dict[tuple[str, float], Contender] = field(default_factory=dict)

    def attempt(self, one: Contender, measure: Callable[[Contender], None]) -> None:
        """Run a measurement, unless the contender has failed; remember that it has, if it fails now."""
        if one.name in self.failed:
            return
        try:
            measure(one)
        except NotSent as error:
            self.failed[one.name] = str(error)
            say(f"FAILED: {error}")

    def check(self, one: Contender) -> None:
        """Check that a contender works: everything that it accepts at a low rate is stored as sent, exactly once."""
        for variant in one.variants or [one]:
            for latency in LATENCIES:
                running = Running(variant, self.servers, latency, self.logs)
                try:
                    running.start()
                    warm_up(running)
                    check(running, QUICK_RATE, QUICK_SECONDS)
                finally:
                    running.stop()
                say(f"{variant.name}, latency {latency:g} s: correct")

    def measure(self, one: Contender, latency: float, round_: int, deadline: float) -> None:
        """Measure one contender at one latency."""
        if (one.key, latency) not in self.chosen:
            self.chosen[one.key, latency] = best_variant(one, self.servers, latency, self.logs, self.plan.step)
        variant = self.chosen[one.key, latency]
        figures = ContenderFigures(one.name, latency, round_, variant.key if variant is not one else "")
        running = Running(variant, self.servers, latency, self.logs)
        try:
            running.start()
            warm_up(running)
            find_end_to_end(running, figures, self.plan.step, self._known(one, latency), deadline)
            figures.memory = running.peak_memory()
            if latency == LATENCIES[0]:
                stop_sending(running)
                measure_accepted(running, figures, self.plan.step)
            else:
                measure_rates(running, figures, RATES, self.plan.fixed)
                measure_tail(running, figures, self.plan.tail)
                if round_ == self.rounds:
                    rate = max(KILL_RATE * figures.end_to_end, 5.0)
                    self.losses[one.name] = count_lost(running, rate, self.plan.step, KILL_PATIENCE)
        finally:
            running.stop()
        self.figures.append(figures)
        _say(figures, self.losses.get(one.name))

    def _known(self, one: Contender, latency: float) -> float | None:
        earlier = [
            each.end_to_end
            for each in self.figures
            if each.contender == one.name and each.latency == latency and each.end_to_end
        ]
        return median(earlier) if earlier else None


def run(benchmark: Benchmark, contenders: Sequence[Contender], ends: float) -> None:
    """Measure all contenders in turn, so that everything ends at the monotonic time `ends`."""
    units = schedule(contenders, benchmark.rounds)
    for number, (each, latency, round_, _) in enumerate(units):
        deadline = search_deadline(ends, benchmark.plan.step, [unit for *_, unit in units[number:]])
        benchmark.attempt(each, partial(benchmark.measure, latency=latency, round_=round_, deadline=deadline))


def selected(keys: Sequence[str] | None, before: str | None) -> list[Contender]:
    """Return the contenders to measure; say which cannot run on this machine."""
    contenders = [contender(key) for key in keys] if keys else list(CONTENDERS)
    if before:
        contenders.append(service_at(before))
    for each in contenders:
        if reason := each.unavailable():
            say(f"{each.name} is left out: {reason}")
    return [each for each in contenders if not each.unavailable()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    keys = [each.key for each in selectable()]
    parser.add_argument(
        "--only", nargs="+", choices=keys, metavar="KEY", help=f"some contenders alone: {', '.join(keys)}"
    )
    parser.add_argument("--before", metavar="COMMIT", help="also measure an earlier commit of this service")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="number of rounds (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for everything (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="only check that each contender sends what it accepts")
    parser.add_argument("--results", type=Path, help="output folder; without it, a full run is published")
    return parser


def main() -> None:
    """Run the benchmark; publish its results if it was a full run."""
    parser = _parser()
    options = parser.parse_args()
    contenders = selected(options.only, options.before)
    began = time.monotonic()
    try:
        lengths = plan(options.minutes, [unit for *_, unit in schedule(contenders, options.rounds)])
    except ValueError as error:
        parser.error(str(error))
    with log_folder() as logs, running_servers() as servers:
        versions = servers.versions()
        benchmark = Benchmark(servers, logs, lengths, options.rounds)
        if options.quick:
            for each in contenders:
                benchmark.attempt(each, benchmark.check)
        else:
            say(f"{len(contenders)} contenders, {options.rounds} rounds, steps of {lengths.step:.1f} s")
            run(benchmark, contenders, began + options.minutes * 60)
    if not options.quick:
        _report(benchmark, {**circumstances(began, versions), **_method(benchmark, contenders)}, options)
    sys.exit(1 if benchmark.failed else 0)


def _method(benchmark: Benchmark, contenders: Sequence[Contender]) -> tables.Json:
    lengths = benchmark.plan
    return {
        "method": METHOD, "rounds": benchmark.rounds, "step_seconds": lengths.step, "rate_seconds": lengths.fixed,
        "tail_seconds": lengths.tail, "configuration": {each.name: _configuration(each) for each in contenders},
    }  # fmt: skip


def _report(benchmark: Benchmark, head: tables.Json, options: argparse.Namespace) -> None:
    figures = [each.as_json() for each in benchmark.figures]
    results = {**head, "figures": figures, "lost": benchmark.losses, "failed": benchmark.failed}
    published = not (options.only or options.results or benchmark.failed)
    folder = options.results or (RESULTS if published else None)
    if folder is not None:
        write_json(folder / "compare.json", results)
        compare_plots.compare(results, folder)
        say(f"Results written to {folder}")
    if published:
        tables.write("compare", compare_tables.compare(results))
    else:
        print(compare_tables.compare(results))


def _configuration(one: Contender) -> tables.Json:
    return {"switches": one.switches, "guarantees": one.guarantees, "documentation": list(one.documentation)}


def _say(figures: ContenderFigures, lost: dict[str, float] | None) -> None:
    tried = ", ".join(
        f"{rate:.0f} {'sustained' if sustained else 'not sustained'}" for rate, sustained in figures.tried
    )
    accepted = "" if figures.accepted is None else f"accepted {figures.accepted:.0f}/s, "
    rates = ", ".join(
        f"{rate}/s: POST {each.post['p50']:.1f}/{each.post['p99']:.1f} ms, to sent {each.to_sent['p50']:.1f}/"
        f"{each.to_sent['p99']:.1f} ms, {sum(each.cpu.values()):.0f} µs, {each.left} left"
        for rate, each in figures.at.items()
    )
    say(
        f"round {figures.round}, latency {figures.latency} s, {figures.contender} {figures.variant}: {accepted}"
        f"end to end {figures.end_to_end:.0f}/s (tried: {tried})\n"
        f"CPU µs per notification: {tables.listed(figures.cpu)}; peak MiB: {tables.listed(figures.memory)}\n{rates}"
        + (f"; killed under load: {lost}" if lost else "")
    )


if __name__ == "__main__":
    main()
