"""Measurements with millions of stored notifications: reads, inserts, and dropping old partitions."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE, maintenance_program, service_program
from benchmarks.load import Request
from benchmarks.progress import say
from benchmarks.running import Running
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

# A new database's first partition covers the whole past. It is replaced with weekly partitions, like those that the
# service would have created if it had been running all along.
PARTITION = """
    CREATE TABLE {table}_until_{end:%Y%m%d} PARTITION OF {table} FOR VALUES FROM ({begin}) TO ('{last}') {storage}
"""
FIRST = """
    SELECT inhrelid::regclass::text, substring(inhrelid::regclass::text from '[0-9]+$')
    FROM pg_inherits WHERE inhparent = '{table}'::regclass ORDER BY 2 LIMIT 1
"""
STORAGE = {"notifications": "", "deliveries": "WITH (fillfactor = 80)", "attempts": ""}
# Make a UUIDv7 for a given time by replacing the start of a random UUID with the time in milliseconds.
ID_AT = """
    CREATE FUNCTION pg_temp.id_at(at timestamptz) RETURNS uuid LANGUAGE sql AS $$
        SELECT overlay(overlay(gen_random_uuid()::text PLACING '7' FROM 15) PLACING
            substr(hex, 1, 8) || '-' || substr(hex, 9, 4) FROM 1)::uuid
        FROM lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') AS hex
    $$
"""
# One notification in fifty has failed.
FILL = """
    WITH made AS (
        SELECT pg_temp.id_at(at) AS notification_id, pg_temp.id_at(at) AS delivery_id, at, number
        FROM (
            SELECT number, now() - interval '1 minute' - interval '{span} seconds' * (1 - number / {count}::float) AS at
            FROM generate_series({first}, {last}) AS number
        ) AS numbers
    ), notification AS (
        INSERT INTO notifications (id, user_id, message, created_at)
        SELECT notification_id, 1 + floor(random() * {users}), 'Your code: ' || number, at FROM made
    ), delivery AS (
        INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
        SELECT delivery_id, notification_id, 'telegram', CASE WHEN number % 50 = 0 THEN 'failed' ELSE 'sent' END,
            1, 1, (number % 50 = 0)::int, at
        FROM made
    )
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, error_code, started_at, finished_at)
    SELECT delivery_id, 1, 1, CASE WHEN number % 50 = 0 THEN 'failed' ELSE 'sent' END,
        CASE WHEN number % 50 = 0 THEN 'permanent' END, CASE WHEN number % 50 = 0 THEN 'simulated_error' END, at, at
    FROM made
"""
CHUNK = 250_000


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
        _store(servers, count)
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


def _store(servers: Servers, count: int) -> None:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        for table, storage in STORAGE.items():
            [first, end] = connection.execute(FIRST.format(table=table)).fetchone() or ("", "")
            connection.execute(f"DROP TABLE {first}")
            last = datetime.strptime(end, "%Y%m%d").replace(tzinfo=UTC)
            begin = "MINVALUE"
            for week in range(WEEKS, -1, -1):
                until = last - timedelta(weeks=week)
                bound = _first_id(until)
                connection.execute(PARTITION.format(table=table, end=until, begin=begin, last=bound, storage=storage))
                begin = f"'{bound}'"
        connection.execute(ID_AT)
        span = timedelta(weeks=WEEKS).total_seconds()
        for first_number in range(1, count + 1, CHUNK):
            last_number = min(first_number + CHUNK - 1, count)
            connection.execute(FILL.format(first=first_number, last=last_number, count=count, span=span, users=USERS))
        connection.execute("VACUUM (ANALYZE) notifications, deliveries, attempts")
        connection.execute("CHECKPOINT")


def _first_id(at: datetime) -> str:
    hexadecimal = f"{int(at.timestamp() * 1000):012x}".ljust(32, "0")
    return "-".join(hexadecimal[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


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
    before, partitions = _count(running), _old_partitions(running)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(generate, running.url, POST_RATE, 2 * STEP)
        time.sleep(STEP / 2)
        began = time.time()
        running.launch(maintenance_program(RETENTION_DAYS))  # it drops old partitions at its start
        while _old_partitions(running):
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


def _old_partitions(running: Running) -> int:
    [[count]] = running.query(
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '_until_[0-9]{8}$' "
        f"AND to_date(right(relname, 8), 'YYYYMMDD') + {RETENTION_DAYS} <= current_date"
    )
    return int(str(count))


def _count(running: Running) -> int:
    [[count]] = running.query("SELECT count(*) FROM notifications")
    return int(str(count))


def _latencies(seen: dict[str, list[float]]) -> list[float]:
    return [answered - due for due, answered in zip(seen["due"], seen["answered"], strict=True)]
