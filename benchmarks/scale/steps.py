"""The steps that the measurements at scale share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contenders.service import SERVICE
from benchmarks.running import Running
from benchmarks.servers import Servers
from benchmarks.steps import generate

FILL_STEP = 20.0  # seconds of load between two checks of the backlog
CATCH_UP_TIMEOUT = 300.0  # seconds
POLL = 0.5  # seconds
DELIVERY_QUEUE = "notifications.telegram"

Json = dict[str, object]


@contextmanager
def gateway_alone(servers: Servers, logs: Path, latency: float = 0.0) -> Iterator[Running]:
    """Run only the gateway, on empty servers; the caller starts the other processes."""
    running = Running(SERVICE, servers, latency, logs, without_sending=True)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def fill(running: Running, count: int) -> int:
    """Post until the backlog is at least `count`, and return the number of stored notifications."""
    while (missing := count - count_waiting(running)) > 0:
        generate(running.url, 0, min(FILL_STEP, max(missing / 5000, 0.2)))
    while count_rows(running, "outbox"):
        time.sleep(POLL)
    return count_rows(running, "notifications")


def settle(running: Running) -> None:
    """Let PostgreSQL clean up after the backlog is filled, so that this work is not measured."""
    running.query("VACUUM (ANALYZE) notifications, deliveries, attempts")
    running.query("CHECKPOINT")
    while running.query("SELECT FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"):
        time.sleep(POLL)


def await_attempted(running: Running, count: int) -> None:
    """Wait until `count` deliveries have been attempted."""
    await_(running, lambda: running.servers.acknowledged(DELIVERY_QUEUE) >= count)


def await_sent(running: Running, count: int, timeout: float = CATCH_UP_TIMEOUT) -> None:
    """Wait until `count` deliveries have been sent."""
    await_(running, lambda: int(str(running.query(SERVICE.count)[0][0])) >= count, timeout)


def await_(running: Running, condition: Callable[[], bool], timeout: float = CATCH_UP_TIMEOUT) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Timed out after {timeout:.0f} s; the logs are in {running.logs}")
        time.sleep(POLL)


def count_rows(running: Running, table: str) -> int:
    """Return the number of rows of a table."""
    [[count]] = running.query(f"SELECT count(*) FROM {table}")
    return int(str(count))


def count_waiting(running: Running) -> int:
    """Return the number of notifications that have not been attempted yet."""
    return count_rows(running, "notifications") - count_rows(running, "attempts")


def times(running: Running, expression: str, table: str) -> list[float]:
    """Return the values of a time expression over all rows of a table, sorted, in seconds since the epoch."""
    rows = running.query(f"SELECT extract(epoch FROM {expression})::float FROM {table} ORDER BY 1")
    return [float(str(at)) for [at] in rows]


def per_item(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    """Return the microseconds of CPU per item, by process."""
    return {name: (after[name] - before[name]) / count * 1e6 for name in after}
