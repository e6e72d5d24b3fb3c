"""Samples of memory, disk and backlog while something else is measured."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.running import Running, memory
from benchmarks.scale.steps import DELIVERY_QUEUE

INTERVAL = 5.0  # seconds


@dataclass(frozen=True)
class Sample:
    """Memory, disk and backlog at one time."""

    seconds: float
    """The time since the first sample."""
    waiting: int
    """The messages in the senders' queue."""
    memory: dict[str, float]
    """MiB by process, RabbitMQ included."""
    broker_disk: float
    """MiB"""
    database_disk: float
    """MiB"""


@contextmanager
def sampled(running: Running, interval: float = INTERVAL) -> Iterator[list[Sample]]:
    """Take samples until the context ends."""
    samples: list[Sample] = []
    ended, began = threading.Event(), time.monotonic()

    def take() -> None:
        while not ended.wait(interval):
            samples.append(_sample(running, began))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
        samples.append(_sample(running, began))


def _sample(running: Running, began: float) -> Sample:
    used: dict[str, float] = {}
    pids = {name: process.pid for name, process in list(running.processes.items())}
    for name, pid in {**pids, "rabbitmq": running.servers.pids["rabbitmq"]}.items():
        try:
            used[name] = memory(pid)
        except psutil.NoSuchProcess:
            continue  # the process was stopped meanwhile
    return Sample(
        seconds=time.monotonic() - began,
        waiting=running.servers.queued(DELIVERY_QUEUE),
        memory=used,
        broker_disk=running.servers.broker_disk(),
        database_disk=running.servers.database_disk(),
    )


def peaks(samples: list[Sample]) -> dict[str, Any]:
    """Return the largest values of all samples."""
    names = {name for sample in samples for name in sample.memory}
    return {
        "waiting": max(sample.waiting for sample in samples),
        "memory": {name: max(sample.memory.get(name, 0.0) for sample in samples) for name in sorted(names)},
        "broker_disk": max(sample.broker_disk for sample in samples),
        "database_disk": max(sample.database_disk for sample in samples),
    }


def as_json(samples: list[Sample]) -> list[dict[str, Any]]:
    """Return the samples in the form in which they are stored as JSON."""
    return [asdict(sample) for sample in samples]
