"""Measurements of one contender: throughput, latency, CPU and losses."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import Running
from benchmarks.servers import PROJECT
from benchmarks.tables import LOAD_GENERATOR

BODY = json.dumps({"user_id": 123, "message": "Your code: 11111", "type": "telegram"})
CONNECTIONS = 64
DRAIN_TIMEOUT = 5.0  # seconds to send the backlog after a step; a slower contender is restarted
WARM_UP = (100.0, 1.0)  # requests a second, seconds
# Rates are not measured in this first fraction of a step, because caches and connections are still warming up.
SETTLING = 0.3
GROWTH = 0.02  # fraction of the offered rate by which the backlog may grow; smaller growth is noise
KEPT_UP = 0.97  # fraction of the offered requests that must be accepted in time
SEARCH_STEPS = 6
CLOSE_ENOUGH = 1.05  # ratio of lowest unsustained to highest sustained rate at which the search stops


@dataclass(frozen=True)
class Step:
    """One load and its results."""

    offered: float
    """The offered requests a second; 0 means as many as the contender can answer."""
    seconds: float
    began: float
    answered: Sequence[float]
    """The times of the 201s in seconds since the epoch."""
    latencies: Sequence[float]
    """The seconds from the scheduled time of each request to its 201."""
    to_sent: Sequence[float]
    """The seconds from each 201 to the commit that made its notification `sent`."""
    sent: Sequence[float]
    """The times of those commits."""
    failed: int
    """The number of requests without a 201."""
    left: int
    """The number of accepted notifications that were still unsent at the timeout."""
    cpu: dict[str, float]
    """The seconds of CPU by process."""

    def rate(self, times: Sequence[float]) -> float:
        """Return the number of `times` per second, ignoring the settling phase at the start."""
        begin, end = self.began + SETTLING * self.seconds, self.began + self.seconds
        return sum(begin <= at < end for at in times) / (end - begin)

    @property
    def sustained(self) -> bool:
        """True if the offered requests were accepted in time and the backlog did not grow."""
        accepted = self.rate(self.answered)
        growth = accepted - self.rate(self.sent)
        return not self.failed and accepted >= KEPT_UP * self.offered and growth <= GROWTH * self.offered


@dataclass
class ContenderFigures:
    """The figures for one contender at one provider latency."""

    contender: str
    latency: float
    round: int
    accepted: float = 0.0
    """The accepted requests a second, measured while senders that are separate processes are stopped."""
    end_to_end: float = 0.0
    """The accepted requests a second at the highest offered rate at which the backlog does not grow."""
    cpu: dict[str, float] = field(default_factory=dict)
    """The microseconds of CPU per notification at that rate, by process."""
    tried: list[tuple[float, bool]] = field(default_factory=list)
    """The offered rates, each with True if it was sustained and False otherwise."""
    post: dict[str, dict[str, float]] = field(default_factory=dict)
    """The p50 and p99 of a POST in milliseconds, by requests a second."""
    to_sent: dict[str, dict[str, float]] = field(default_factory=dict)
    """The p50 and p99 from accepted to sent, minus the provider's latency."""
    memory: dict[str, float] = field(default_factory=dict)
    """The peak memory in MiB, by process."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures in the form in which they are stored as JSON."""
        return asdict(self)


def run_step(running: Running, rate: float, seconds: float, connections: int = CONNECTIONS) -> Step:
    """Load the contender, wait until it has sent everything, and clean up for the next step."""
    before = running.cpu()
    seen = generate(running.url, rate, seconds, connections)
    left = _await_drained(running, len(seen["ids"]))
    after = running.cpu()
    sent = {str(row[0]): float(str(row[1])) for row in running.query(running.contender.sent)}
    accepted = dict(zip(seen["ids"], seen["answered"], strict=True))
    cpu = {name: after[name] - before[name] for name in after}
    cpu[LOAD_GENERATOR] = seen["cpu"]
    step = Step(
        offered=rate,
        seconds=seconds,
        began=seen["began"],
        answered=seen["answered"],
        latencies=[answered - due for due, answered in zip(seen["due"], seen["answered"], strict=True)],
        to_sent=[sent[each] - at for each, at in accepted.items() if each in sent],
        sent=sorted(sent[each] for each in accepted if each in sent),
        failed=failures(seen),
        left=left,
        cpu=cpu,
    )
    if left or step.failed:
        running.restart()
    else:
        running.query(running.contender.forget)
    return step


def generate(
    url: str, rate: float, seconds: float, connections: int = CONNECTIONS, paths: Path | None = None
) -> dict[str, Any]:
    """Run the load generator with POSTs, or with GETs of the paths in a file, and return its results."""
    command = _load_command(url, rate, seconds, connections, paths)
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def failures(seen: dict[str, Any]) -> int:
    """Return the number of requests without a successful response."""
    return int(seen["unanswered"] + sum(seen["refused"].values()))


def _load_command(url: str, rate: float, seconds: float, connections: int, paths: Path | None = None) -> list[str]:
    requests = ["--body", BODY] if paths is None else ["--paths", str(paths)]
    return [
        sys.executable, "-m", "benchmarks.load", url, *requests, "--rate", str(rate), "--seconds", str(seconds),
        "--connections", str(connections),
    ]  # fmt: skip


def warm_up(running: Running) -> None:
    """Load the contender briefly, to open connections and prepare statements before anything is measured."""
    run_step(running, *WARM_UP)


def find_end_to_end(running: Running, figures: ContenderFigures, seconds: float) -> None:
    """Find the highest sustained rate by bisection, starting from the send rate under full load."""
    full_load = run_step(running, 0, seconds)
    lowest, highest = 0.0, full_load.rate(full_load.answered) * 1.1
    candidate = min(max(full_load.rate(full_load.sent), 1.0), highest)
    best: Step | None = None
    for _ in range(SEARCH_STEPS):
        step = run_step(running, candidate, seconds)
        figures.tried.append((round(candidate, 1), step.sustained))
        if step.sustained:
            lowest, best = candidate, step
        else:
            highest = candidate
        if lowest and highest / lowest <= CLOSE_ENOUGH:
            break
        # Raise the rate gradually, because a step far beyond a contender's capacity takes long and shows nothing.
        candidate = min((lowest + highest) / 2, lowest * 1.3) if lowest else candidate * 0.8
    if best is not None:
        figures.end_to_end = best.rate(best.answered)
        figures.cpu = {name: used / len(best.answered) * 1e6 for name, used in best.cpu.items()}


def find_latencies(running: Running, figures: ContenderFigures, rates: Sequence[float], seconds: float) -> None:
    """Measure the POST and accepted-to-sent latencies at each of `rates` that the contender can sustain."""
    for rate in rates:
        if rate > 0.95 * figures.end_to_end:
            continue
        step = run_step(running, rate, seconds)
        figures.post[f"{rate:.0f}"] = percentiles(step.latencies)
        figures.to_sent[f"{rate:.0f}"] = percentiles([each - figures.latency for each in step.to_sent])


def find_accepted(running: Running, figures: ContenderFigures, seconds: float) -> None:
    """Measure how many requests a second are accepted under full load."""
    step = run_step(running, 0, seconds)
    figures.accepted = step.rate(step.answered)


def count_lost(running: Running, rate: float, seconds: float, patience: float) -> dict[str, float]:
    """Kill all processes under load, restart them, and count the accepted notifications that are never sent."""
    command = _load_command(running.url, rate, seconds, CONNECTIONS)
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as loading:
        time.sleep(seconds)
        running.kill()
        output, _ = loading.communicate()
    accepted = set(json.loads(output)["ids"])
    running.start(fresh=False)
    deadline = time.monotonic() + patience
    while True:
        sent = {str(row[0]) for row in running.query(running.contender.sent)}
        if accepted <= sent or time.monotonic() > deadline:
            return {"accepted": len(accepted), "lost": len(accepted - sent)}
        time.sleep(0.5)


def _await_drained(running: Running, accepted: int) -> int:
    """Wait until all accepted notifications are sent; return how many are still unsent at the timeout."""
    if running.without_sending:
        return 0
    deadline = time.monotonic() + DRAIN_TIMEOUT + running.latency
    while True:
        [[sent]] = running.query(running.contender.count)
        left = accepted - int(str(sent))
        if left <= 0 or time.monotonic() > deadline:
            return max(left, 0)
        time.sleep(0.1)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the p50 and p99 of times in seconds, converted to milliseconds."""
    ordered = sorted(seconds)
    return {
        name: ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
