"""One run: the CPU per notification at a fixed rate, then the latencies at a low rate."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.arithmetic import KEPT_UP, percentiles, window_count
from benchmarks.contenders.service import SERVICE
from benchmarks.pair.figures import LATENCY_RATE, CpuFigures, LatencyFigures
from benchmarks.pair.stack import Stack
from benchmarks.steps import SETTLING, failures, generate

WARM_UP = 5.0  # seconds
FINAL_TIMEOUT = 120.0  # seconds
# Work such as acks and outbox deletes continues after the last status is stored, and must be counted as well.
SETTLE = 1.0  # seconds
COUNTS = "SELECT count(*), count(*) FILTER (WHERE status <> 'sent') FROM deliveries"


@dataclass(frozen=True)
class Load:
    """The load of a run."""

    rate: float
    """The requests a second while CPU is measured."""
    seconds: float
    """The length of each part of the run in seconds."""


def warm_up(stack: Stack, rate: float) -> None:
    """Load the stack before anything is measured, to open connections, prepare statements and fill caches."""
    _load_until_final(stack, rate, WARM_UP)


def measure_cpu(stack: Stack, load: Load) -> CpuFigures:
    """Load the stack at a fixed rate, and measure its CPU per notification once all notifications are final."""
    time.sleep(SETTLE)
    before, machine = stack.cpu(), _Machine()
    seen = _load_until_final(stack, load.rate, load.seconds)
    time.sleep(SETTLE)
    after = stack.cpu()
    used = {name: after[name] - before[name] for name in after}
    other_work = machine.other_work(sum(used.values()))
    notifications, failed = len(seen["ids"]), failures(dict(seen))
    accepted, offered = (_rate(seen, times, load.seconds) for times in ("answered", "due"))
    return CpuFigures(
        notifications=notifications,
        accepted=accepted,
        failed=failed,
        rate_reached=not failed and accepted >= KEPT_UP * offered,
        processes={name: seconds / notifications * 1e6 for name, seconds in used.items()},
        load_generator=seen["cpu"] / notifications * 1e6,
        other_work=other_work,
    )


def measure_latency(stack: Stack, seconds: float) -> LatencyFigures:
    """Load the stack lightly, and measure the latencies."""
    before, machine = stack.cpu(), _Machine()
    seen = _load_until_final(stack, LATENCY_RATE, seconds)
    other_work = machine.other_work(sum(stack.cpu().values()) - sum(before.values()))
    sent = {str(row[0]): float(str(row[1])) for row in stack.query(SERVICE.sent)}
    return LatencyFigures(
        post=percentiles([answered - due for due, answered in zip(seen["due"], seen["answered"], strict=True)]),
        to_sent=percentiles([sent[each] - at for each, at in zip(seen["ids"], seen["answered"], strict=True)]),
        failed=failures(dict(seen)),
        other_work=other_work,
    )


def _rate(seen: Mapping[str, Any], times: str, seconds: float) -> float:
    """Return how many of the accepted requests a second were due or answered after the settling phase."""
    began: float = seen["began"]
    begin, end = began + SETTLING * seconds, began + seconds
    return window_count(seen[times], begin, end) / (end - begin)


class _Machine:
    """Measures how much CPU the machine has used since this object was created."""

    def __init__(self) -> None:
        self._began, self._all, self._driver = time.monotonic(), _machine_seconds(), _driver_seconds()

    def other_work(self, stack: float) -> float:
        """Return other programs' CPU use as a percentage of one core; `stack` is the stack's CPU time in seconds."""
        seconds = _machine_seconds() - self._all - (_driver_seconds() - self._driver) - stack
        return max(0.0, seconds) / (time.monotonic() - self._began) * 100


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _driver_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _load_until_final(stack: Stack, rate: float, seconds: float) -> Mapping[str, Any]:
    """Load the stack, wait until every accepted notification is sent, and return the load generator's results."""
    stored_before, _ = _counts(stack)
    seen = generate(stack.gateway, rate, seconds, requests=[stack.request])
    accepted = len(seen["ids"])
    if not accepted:
        raise SystemExit(f"No request was accepted ({seen['refused']}); the logs are in {stack.folder / 'log'}.")
    deadline = time.monotonic() + FINAL_TIMEOUT
    while True:
        stored, unsent = _counts(stack)
        if not unsent and stored - stored_before >= accepted:
            return seen
        if time.monotonic() > deadline:
            raise SystemExit(
                f"{unsent} notifications were not sent {FINAL_TIMEOUT:.0f} s after the last request, so the sides "
                f"would not have done the same work. Try a lower --rate; the logs are in {stack.folder / 'log'}."
            )
        # Poll rarely, because each count is a scan whose CPU is charged to this side.
        time.sleep(0.5)


def _counts(stack: Stack) -> tuple[int, int]:
    [[stored, unsent]] = stack.query(COUNTS)
    return int(str(stored)), int(str(unsent))
