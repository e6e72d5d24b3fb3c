"""Counts of batches and messages: the services' own metrics, and those of RabbitMQ."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from benchmarks.profile.figures import BatchFigures

_SAMPLE = re.compile(r'^notify_group_size_(sum|count)\{step="([^"]+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Batches:
    """The batches of one step so far."""

    items: float = 0.0
    count: float = 0.0


Steps = Mapping[tuple[str, str], Batches]
"""The batches by process and step."""


def batches(pids: Mapping[str, int]) -> Steps:
    """Return the batches of all steps of these processes, from their metrics."""
    found: dict[tuple[str, str], Batches] = {}
    for name, pid in pids.items():
        port = psutil.Process(pid).environ()["HEALTH_PORT"]
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10, trust_env=False).raise_for_status().text
        found |= {(name, step): each for step, each in parse(text).items()}
    return found


def parse(metrics: str) -> dict[str, Batches]:
    """Return the batches by step, from metrics in Prometheus's text format."""
    values = {(step, kind): float(value) for kind, step, value in _SAMPLE.findall(metrics)}
    return {step: Batches(values[step, "sum"], values[step, "count"]) for step, kind in values if kind == "sum"}


def batch_figures(before: Steps, after: Steps, notifications: int) -> list[BatchFigures]:
    """Return the mean size and the number of the batches between two readings, without steps that had none."""
    figures = []
    for (process, step), each in after.items():
        earlier = before.get((process, step), Batches())
        count = each.count - earlier.count
        if count:
            items = (each.items - earlier.items) / count
            figures.append(BatchFigures(process, step, items, count / notifications))
    return figures


def messages(management: str) -> dict[str, float]:
    """Return how many messages have been published to each exchange; RabbitMQ's counts lag by a few seconds."""
    with httpx.Client(base_url=management, timeout=60, trust_env=False) as client:
        exchanges: list[dict[str, Any]] = client.get("/api/exchanges").raise_for_status().json()
    return {str(each["name"]): float(each.get("message_stats", {}).get("publish_in", 0)) for each in exchanges}


def message_figures(before: Mapping[str, float], after: Mapping[str, float], notifications: int) -> dict[str, float]:
    """Return the messages per notification and exchange between two readings, without exchanges that had none."""
    counts = {name: count - before.get(name, 0.0) for name, count in after.items()}
    return {name: count / notifications for name, count in sorted(counts.items()) if count > 0}
