"""One step of a measurement: a load, what became of it, and the CPU that it took."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.arithmetic import sustained, window_count
from benchmarks.load import Request
from benchmarks.paths import PROJECT
from benchmarks.running import Running

LOAD_GENERATOR = "load generator"
BODY = json.dumps({"user_id": 123, "message": "Your code: 11111", "type": "telegram"})
CONNECTIONS = 256
# A server may close a connection that stays idle for 5 s (uvicorn). At low rates fewer connections take turns.
CONNECTIONS_PER_RATE = 3
FEWEST_CONNECTIONS = 16
DRAIN_TIMEOUT = 5.0  # seconds to send the backlog after a step; a slower contender is restarted
# Rates are not measured in this first fraction of a step, because caches and connections are still warming up.
SETTLING = 0.3
WARM_UP_SECONDS = 0.4  # length of a closed loop, which opens all connections
WARM_UP_CONNECTIONS = 128  # enough for two API workers to use all their threads (40 each) and database connections
ALL_SENT_TIMEOUT = 60.0  # seconds until everything from the warm-up must be sent


class NotSent(Exception):
    """A contender has not sent what it accepted, although nothing disturbed it."""


@dataclass(frozen=True)
class Step:
    """One load and its results."""

    offered: float
    """The offered requests a second; 0 means as many as the contender can answer."""
    seconds: float
    began: float
    due: Sequence[float]
    """The scheduled times of the accepted requests in seconds since the epoch."""
    answered: Sequence[float]
    """The times of their 201s, in the same order."""
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

    @property
    def latencies(self) -> list[float]:
        """The seconds from the scheduled time of each request to its 201."""
        return [answered - due for due, answered in zip(self.due, self.answered, strict=True)]

    @property
    def cpu_each(self) -> dict[str, float]:
        """The microseconds of CPU per notification, by process."""
        return {name: used / max(len(self.answered), 1) * 1e6 for name, used in self.cpu.items()}

    def count(self, times: Sequence[float]) -> int:
        """Return how many `times` lie in the step, ignoring the settling phase at the start."""
        return window_count(times, self.began + SETTLING * self.seconds, self.began + self.seconds)

    def rate(self, times: Sequence[float]) -> float:
        """Return the number of `times` per second, ignoring the settling phase at the start."""
        return self.count(times) / (self.seconds * (1 - SETTLING))

    def sustained(self, latency: float) -> bool:
        """Return whether the offered requests were accepted in time and the backlog did not grow."""
        return sustained(
            due=self.count(self.due),
            accepted=self.count(self.answered),
            sent=self.count(self.sent),
            in_flight=self.offered * latency,
            failed=self.failed,
        )


def run_step(running: Running, rate: float, seconds: float, *, seed: int = 1, connections: int = CONNECTIONS) -> Step:
    """Load the contender, wait until it has sent everything, and clean up for the next step."""
    before = running.cpu()
    seen = generate(running.url, rate, seconds, connections, running.request_headers, seed=seed)
    left = await_drained(running, len(seen["ids"]), DRAIN_TIMEOUT + running.latency)
    after = running.cpu()
    sent = {str(row[0]): float(str(row[1])) for row in running.query(running.contender.sent)}
    accepted = dict(zip(seen["ids"], seen["answered"], strict=True))
    cpu = {name: after[name] - before[name] for name in after}
    cpu[LOAD_GENERATOR] = seen["cpu"]
    step = Step(
        offered=rate,
        seconds=seconds,
        began=seen["began"],
        due=seen["due"],
        answered=seen["answered"],
        to_sent=[sent[each] - at for each, at in accepted.items() if each in sent],
        sent=sorted(sent[each] for each in accepted if each in sent),
        failed=failures(seen),
        left=left,
        cpu=cpu,
    )
    if left or step.failed:
        running.restart()
        warm_up(running)
    else:
        running.query(running.contender.forget)
    return step


def warm_up(running: Running) -> None:
    """Open all connections, prepare statements and fill caches before anything is measured, and check the contender.

    This is also the check of its readiness, because workers have no endpoint for that: everything must be sent.
    """
    seen = generate(running.url, 0, WARM_UP_SECONDS, WARM_UP_CONNECTIONS, running.request_headers)
    if failures(seen) or not seen["ids"]:
        raise NotSent(f"{running.contender.name}: {failures(seen)} requests of the warm-up failed ({seen['refused']})")
    if not running.without_sending:
        left = await_drained(running, len(seen["ids"]), ALL_SENT_TIMEOUT)
        check_all_sent(running, seen["ids"], left)
    running.query(running.contender.forget)


def check(running: Running, rate: float, seconds: float) -> None:
    """Load the contender lightly; raise `NotSent` unless everything is accepted and sent."""
    seen = generate(running.url, rate, seconds, headers=running.request_headers)
    if failures(seen) or not seen["ids"]:
        raise NotSent(f"{running.contender.name}: {failures(seen)} requests failed ({seen['refused']})")
    check_all_sent(running, seen["ids"], await_drained(running, len(seen["ids"]), ALL_SENT_TIMEOUT))


def check_all_sent(running: Running, ids: Sequence[str], left: int) -> None:
    """Raise `NotSent` unless each accepted notification is stored, exactly once, as sent."""
    sent = [str(row[0]) for row in running.query(running.contender.sent)]
    missing = set(ids).difference(sent)
    if left or missing or len(sent) != len(ids):
        raise NotSent(
            f"{running.contender.name} accepted {len(ids)} notifications and has sent {len(sent)}; {len(missing)} are "
            f"missing. Its logs are in {running.logs}"
        )


@contextmanager
def requests_file(requests: Iterable[Request]) -> Iterator[Path]:
    """Write the requests to a temporary file for the load generator."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(request) + "\n" for request in requests)
        file.flush()
        yield Path(file.name)


def generate(
    url: str,
    rate: float,
    seconds: float,
    connections: int = CONNECTIONS,
    headers: Mapping[str, str] | None = None,
    *,
    requests: Sequence[Request] | None = None,
    seed: int = 1,
) -> dict[str, Any]:
    """Run the load generator with `requests`, or else with POSTs to the URL, and return its results."""
    with requests_file(requests or [post(url, headers)]) as file:
        command = load_command(url, file, rate, seconds, connections, seed)
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def post(url: str, headers: Mapping[str, str] | None = None, body: str = BODY) -> Request:
    """Return the request that posts a notification."""
    return Request("POST", urlsplit(url).path, headers or {}, body)


def load_command(url: str, file: Path, rate: float, seconds: float, connections: int, seed: int = 1) -> list[str]:
    """Return the command that runs the load generator."""
    if rate:
        connections = min(connections, max(FEWEST_CONNECTIONS, int(rate * CONNECTIONS_PER_RATE)))
    return [
        sys.executable, "-m", "benchmarks.load", url, "--requests", str(file), "--rate", str(rate),
        "--seconds", str(seconds), "--connections", str(connections), "--seed", str(seed),
    ]  # fmt: skip


def failures(seen: Mapping[str, Any]) -> int:
    """Return the number of requests without a successful response."""
    return int(seen["unanswered"] + sum(seen["refused"].values()))


def await_drained(running: Running, accepted: int, timeout: float) -> int:
    """Wait until all accepted notifications are sent; return how many are still unsent at the timeout."""
    if running.without_sending:
        return 0
    deadline = time.monotonic() + timeout
    while True:
        [[sent]] = running.query(running.contender.count)
        left = accepted - int(str(sent))
        if left <= 0 or time.monotonic() > deadline:
            return max(left, 0)
        time.sleep(0.1)
