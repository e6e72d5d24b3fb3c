"""Measurements with millions of stored notifications: reads, inserts, and dropping old partitions."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE, maintenance_program, service_program
from benchmarks.load import Request
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.scale.filling import Fill, store
from benchmarks.servers import Servers
from benchmarks.steps import failures, generate, warm_up

STORED = 5_000_000
USERS = 100_000
WEEKS = 4
READ_RATE = 100.0  # requests a second
READ_SECONDS = 20.0
POST_RATE = 200.0  # requests a second
STEP = 10.0  # seconds
WARM_UP = 2.0  # seconds
PATHS = int(READ_RATE * (WARM_UP + READ_SECONDS))
RETENTION_DAYS = 8

Json = dict[str, object]


def stored(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure GETs, POSTs and dropping old partitions while millions of notifications are stored."""
    running = Running(SERVICE, servers, 0.0, logs)
    try:
        running.start()
        warm_up(running)
        empty = _inserts(running)
        running.stop()
        servers.reset()
        SERVICE.prepare(servers)
        began = time.monotonic()
        count = int(STORED * fraction)
        store(servers, Fill(count, WEEKS, users=USERS))
        filled = time.monotonic() - began
        say(f"stored: {count:,}")
        running.start(fresh=False)
        reads = {name: _reads(running, paths) for name, paths in _paths(running).items()}
        return {
            "stored": count, "filled_in": filled, "read_rate": READ_RATE, "post_rate": POST_RATE, "reads": reads,
            "inserts": {"empty": empty, "stored": _inserts(running)}, "drop": _drop(running),
        }  # fmt: skip
    finally:
        running.stop()


def _paths(running: Running) -> dict[str, list[str]]:
    """Return random paths for each kind of read."""
    some = f"ORDER BY random() LIMIT {PATHS}"
    ids = running.query(f"SELECT id::text FROM notifications TABLESAMPLE BERNOULLI (0.1) {some}")
    recent = running.query(f"SELECT id::text FROM notifications WHERE created_at > now() - interval '20 hours' {some}")
    users = [1 + int(random.random() * USERS) for _ in range(PATHS)]
    now = datetime.now(UTC)
    times = [f"{now - timedelta(days=WEEKS * 7 - 1) * random.random():%Y-%m-%dT%H:%M:%SZ}" for _ in range(PATHS)]
    base = "/api/notifications"
    return {
        "one notification": [f"{base}/{id_}" for [id_] in ids],
        "one user's, 50 per page": [f"{base}?user_id={user}" for user in users],
        "the newest before a given time, 50 per page": [f"{base}?created_before={time}" for time in times],
        "a later page of the last day": [f"{base}?cursor={id_}" for [id_] in recent],
        "the failed before a given time": [f"{base}?status=failed&created_before={time}" for time in times],
    }


def _reads(running: Running, paths: list[str]) -> Json:
    warm_up = int(READ_RATE * WARM_UP)
    _get(running, paths[:warm_up], WARM_UP)
    seen = _get(running, paths[warm_up:], READ_SECONDS)
    if failures(seen):
        raise SystemExit(f"Requests like {paths[0]} failed: refused {seen['refused']}, unanswered {seen['unanswered']}")
    return {**percentiles(_latencies(seen))}


def _get(running: Running, paths: list[str], seconds: float) -> dict[str, Any]:
    return generate(running.url, READ_RATE, seconds, requests=[Request("GET", path) for path in paths])


def _inserts(running: Running) -> Json:
    """Measure POSTs at a steady rate, then how many the gateway can accept while nothing is sent."""
    seen = generate(running.url, POST_RATE, STEP)
    running.stop("telegram_sender", "status_writer")
    full = generate(running.url, 0, STEP)
    running.launch(service_program("telegram_sender"), service_program("status_writer"))
    accepted = sum(at < full["began"] + STEP for at in full["answered"])
    return {**percentiles(_latencies(seen)), "accepted": accepted / STEP}


def _drop(running: Running) -> Json:
    """Measure how long dropping the old partitions takes, and the latency of POSTs during that time."""
    while running.query("SELECT id FROM deliveries WHERE status IN ('pending', 'retrying') LIMIT 1"):
        time.sleep(1)
    before, partitions = _count(running), old_partitions(running, RETENTION_DAYS)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(generate, running.url, POST_RATE, 2 * STEP)
        time.sleep(STEP / 2)
        began = time.time()
        running.launch(maintenance_program(RETENTION_DAYS))  # it drops old partitions at its start
        while old_partitions(running, RETENTION_DAYS):
            time.sleep(0.01)
        ended = time.time()
        seen = loading.result()
    while_dropping = [
        answered - due for due, answered in zip(seen["due"], seen["answered"], strict=True) if began <= due < ended
    ]
    return {
        "retention_days": RETENTION_DAYS, "partitions": partitions, "before": before,
        "after": _count(running) - len(seen["ids"]), "seconds": ended - began, "post": percentiles(while_dropping),
        "failed": failures(seen),
    }  # fmt: skip


def old_partitions(running: Running, days: int) -> int:
    """Return how many tables are older than the retention."""
    [[count]] = running.query(
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '_until_[0-9]{8}$' "
        f"AND to_date(right(relname, 8), 'YYYYMMDD') + {days} <= current_date"
    )
    return int(str(count))


def _count(running: Running) -> int:
    [[count]] = running.query("SELECT count(*) FROM notifications")
    return int(str(count))


def _latencies(seen: dict[str, list[float]]) -> list[float]:
    return [answered - due for due, answered in zip(seen["due"], seen["answered"], strict=True)]
