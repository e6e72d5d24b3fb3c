"""The measurements: what one contender accepts, sends, costs, and loses."""

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
DRAIN_TIMEOUT = 5.0  # seconds for what is on its way after a step; more left than that and the contender begins anew
WARM_UP = (100.0, 1.0)  # requests a second, seconds
# Of a step: the rates are taken after the first part of it, in which caches and connections still warm up.
SETTLING = 0.3
GROWTH = 0.02  # of the offered rate, that the backlog may grow by: no more than the noise of one step
KEPT_UP = 0.97  # of the offered requests that must have been accepted in time
SEARCH_STEPS = 6
CLOSE_ENOUGH = 1.05  # between the highest rate that held and the lowest that did not


@dataclass(frozen=True)
class Step:
    """One load, and what came of it."""

    offered: float
    """Requests a second; 0: as many as are answered."""
    seconds: float
    began: float
    answered: Sequence[float]
    """Times of the 201s, seconds since the epoch."""
    latencies: Sequence[float]
    """Seconds from the time a request was due to its 201."""
    to_sent: Sequence[float]
    """Seconds from a 201 to the commit that made its notification `sent`."""
    sent: Sequence[float]
    """Times of those commits."""
    failed: int
    """Requests without a 201."""
    left: int
    """Accepted and not sent when the measurement gave up waiting."""
    cpu: dict[str, float]
    """Seconds by process."""

    def rate(self, times: Sequence[float]) -> float:
        """How many of `times` there were a second, once it had settled."""
        begin, end = self.began + SETTLING * self.seconds, self.began + self.seconds
        return sum(begin <= at < end for at in times) / (end - begin)

    @property
    def holds(self) -> bool:
        """Whether all that was offered was accepted in time, and the backlog did not grow."""
        accepted = self.rate(self.answered)
        growth = accepted - self.rate(self.sent)
        return not self.failed and accepted >= KEPT_UP * self.offered and growth <= GROWTH * self.offered


@dataclass
class QueueStatistics:
    """What was measured of a contender with one latency of the provider."""

    contender: str
    latency: float
    round: int
    accepted: float = 0.0
    """A second, with its senders stopped where they are processes of their own."""
    end_to_end: float = 0.0
    """A second, at the highest offered rate at which the backlog does not grow."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Microseconds per notification by process, at that rate."""
    tried: list[tuple[float, bool]] = field(default_factory=list)
    """The offered rates, and whether they held."""
    post: dict[str, dict[str, float]] = field(default_factory=dict)
    """By requests a second: p50 and p99 of a POST, in milliseconds."""
    to_sent: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same from accepted to sent, the provider's latency taken off."""
    memory: dict[str, float] = field(default_factory=dict)
    """Peak, MiB by process."""

    def as_json(self) -> dict[str, Any]:
        """For the raw results."""
        return asdict(self)


def run_step(running: Running, rate: float, seconds: float, connections: int = CONNECTIONS) -> Step:
    """Load the contender, and wait for what is on its way to its end."""
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
    """What the load generator has seen: of POSTs, or of GETs of the `paths` in a file."""
    command = _load_command(url, rate, seconds, connections, paths)
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def failures(seen: dict[str, Any]) -> int:
    """Requests that were not answered as they should be."""
    return int(seen["unanswered"] + sum(seen["refused"].values()))


def _load_command(url: str, rate: float, seconds: float, connections: int, paths: Path | None = None) -> list[str]:
    what = ["--body", BODY] if paths is None else ["--paths", str(paths)]
    return [
        sys.executable, "-m", "benchmarks.load", url, *what, "--rate", str(rate), "--seconds", str(seconds),
        "--connections", str(connections),
    ]  # fmt: skip


def warm_up(running: Running) -> None:
    """Let everything have run once: connections, prepared statements, code paths."""
    run_step(running, *WARM_UP)


def find_end_to_end(running: Running, figures: QueueStatistics, seconds: float) -> None:
    """The highest offered rate that holds, by halving; the first guess is what is sent under as much as is accepted."""
    probe = run_step(running, 0, seconds)
    lowest, highest = 0.0, probe.rate(probe.answered) * 1.1
    candidate = min(max(probe.rate(probe.sent), 1.0), highest)
    best: Step | None = None
    for _ in range(SEARCH_STEPS):
        step = run_step(running, candidate, seconds)
        figures.tried.append((round(candidate, 1), step.holds))
        if step.holds:
            lowest, best = candidate, step
        else:
            highest = candidate
        if lowest and highest / lowest <= CLOSE_ENOUGH:
            break
        # Upwards in small steps: far past what it can do, a contender only drowns.
        candidate = min((lowest + highest) / 2, lowest * 1.3) if lowest else candidate * 0.8
    if best is not None:
        figures.end_to_end = best.rate(best.answered)
        figures.cpu = {name: used / len(best.answered) * 1e6 for name, used in best.cpu.items()}


def find_latencies(running: Running, figures: QueueStatistics, rates: Sequence[float], seconds: float) -> None:
    """How long a POST takes, and how long until it is sent, where the contender can do as much at all."""
    for rate in rates:
        if rate > 0.95 * figures.end_to_end:
            continue
        step = run_step(running, rate, seconds)
        figures.post[f"{rate:.0f}"] = percentiles(step.latencies)
        figures.to_sent[f"{rate:.0f}"] = percentiles([each - figures.latency for each in step.to_sent])


def find_accepted(running: Running, figures: QueueStatistics, seconds: float) -> None:
    """How many are accepted a second while nothing else is done."""
    step = run_step(running, 0, seconds)
    figures.accepted = step.rate(step.answered)


def count_lost(running: Running, rate: float, seconds: float, patience: float) -> dict[str, float]:
    """Kill every process in mid-load, start them again, and count what was accepted and is never sent."""
    command = _load_command(running.url, rate, seconds, CONNECTIONS)
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as loading:
        time.sleep(seconds)
        running.kill()
        output, _ = loading.communicate()
    accepted = set(json.loads(output)["ids"])
    running.start(anew=False)
    deadline = time.monotonic() + patience
    while True:
        sent = {str(row[0]) for row in running.query(running.contender.sent)}
        if accepted <= sent or time.monotonic() > deadline:
            return {"accepted": len(accepted), "lost": len(accepted - sent)}
        time.sleep(0.5)


def _await_drained(running: Running, accepted: int) -> int:
    """How many are left when the patience is over."""
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
    """The p50 and p99, in milliseconds."""
    ordered = sorted(seconds)
    return {
        name: ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
