"""A channel whose sender is unavailable for ten minutes, and a backlog of a million that is sent while more arrives."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE, service_program
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.scale.sampling import Sample, as_json, peaks, sampled
from benchmarks.scale.steps import DELIVERY_QUEUE, Json, count_waiting, fill, settle
from benchmarks.servers import Servers
from benchmarks.steps import failures, generate

RATE = 1_000.0  # requests a second, all the time
AWAY = 600.0  # seconds without a sender
BACKLOG = 1_000_000
LATENCY = 0.2  # seconds
SENDERS, CONCURRENCY = 2, 1_000
STRETCH = 10.0  # seconds of load in a row; the load generator keeps all of its results
DRAINED = 2_000  # notifications in flight at this rate and latency, and in the batches
POLL, SMALL = 2.0, 4  # seconds; 4 times in a row
DRAIN_TIMEOUT = 1_800.0  # seconds

Seen = list[dict[str, Any]]


def outage(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure a sender's outage at 1,000/s, and how a backlog of a million is sent while 1,000/s arrive."""
    running = Running(SERVICE, servers, LATENCY, logs, without_sending=True)
    try:
        running.start()
        running.launch(service_program("status_writer"))
        running.without_sending = False
        before = _disk(running)
        with sampled(running) as away:
            seen = _load_for(running, AWAY * fraction)
        say(f"outage: {count_waiting(running):,} are waiting after {AWAY * fraction:.0f} s")
        fill(running, int(BACKLOG * fraction))
        settle(running)
        return {
            "rate": RATE, "seconds": AWAY * fraction, "before": before, "away": _figures(seen, away),
            **_drain(running), "senders": SENDERS, "latency": LATENCY, "concurrency": CONCURRENCY,
        }  # fmt: skip
    finally:
        running.stop()


def _drain(running: Running) -> Json:
    waiting = count_waiting(running)
    with sampled(running) as samples, _steady_load(running) as seen:
        began = time.monotonic()
        sent_before = int(str(running.query(SERVICE.count)[0][0]))
        running.launch(
            *(
                service_program("telegram_sender", number, CONCURRENCY=str(CONCURRENCY))
                for number in range(1, SENDERS + 1)
            )
        )
        small = 0  # how many times in a row the queue was small; RabbitMQ's count is up to 5 s old
        while small < SMALL and time.monotonic() - began < DRAIN_TIMEOUT:
            small = small + 1 if running.servers.queued(DELIVERY_QUEUE) <= DRAINED else 0
            time.sleep(POLL)
        seconds = time.monotonic() - began
        sent = int(str(running.query(SERVICE.count)[0][0])) - sent_before
    return {
        "waiting": waiting, "left": count_waiting(running), "drain_seconds": seconds, "sent": sent / seconds,
        "draining": _figures(seen, samples), "samples": as_json(samples),
    }  # fmt: skip


def _load_for(running: Running, seconds: float) -> Seen:
    seen: Seen = []
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 1:
        seen.append(generate(running.url, RATE, min(STRETCH, left), seed=len(seen)))
    return seen


@contextmanager
def _steady_load(running: Running) -> Iterator[Seen]:
    """Load the gateway until the context ends; yield the load generator's results."""
    seen: Seen = []
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            seen.append(generate(running.url, RATE, STRETCH, seed=len(seen)))

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _figures(seen: Seen, samples: list[Sample]) -> Json:
    latencies = [at - due for each in seen for due, at in zip(each["due"], each["answered"], strict=True)]
    return {
        "accepted": sum(len(each["ids"]) for each in seen), "failed": sum(map(failures, seen)),
        "post": percentiles(latencies), **peaks(samples),
    }  # fmt: skip


def _disk(running: Running) -> Json:
    return {"broker_disk": running.servers.broker_disk(), "database_disk": running.servers.database_disk()}
