"""Ten million stored notifications of a thousand tenants, in few and in many partitions."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE, SERVICE_WITH_KEYS
from benchmarks.load import Request
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.scale.filling import Fill, first_id, store
from benchmarks.scale.steps import Json, await_, settle
from benchmarks.scale.tenants import bearer, create_keys
from benchmarks.servers import Servers
from benchmarks.steps import CONNECTIONS, failures, generate, post

STORED = 10_000_000
TENANTS = 1_000
USERS = 100_000
PARTITIONS = (10, 120)
LIST_RATE, WRITE_RATE = 50.0, 500.0  # requests a second
SECONDS, SHORTEST = 20.0, 3.0
WARM_UP = 3.0  # seconds
RETENTION = timedelta(days=10)  # newest days whose lists are asked for


def partitions(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure lists at 50/s while 500/s are accepted and sent, with ten million notifications stored."""
    seconds = max(SECONDS * fraction, SHORTEST)
    figures = [_measure(servers, logs, count, int(STORED * fraction), seconds) for count in PARTITIONS]
    return {
        "stored": int(STORED * fraction), "tenants": TENANTS, "list_rate": LIST_RATE, "write_rate": WRITE_RATE,
        "figures": figures,
    }  # fmt: skip


def _measure(servers: Servers, logs: Path, count: int, stored: int, seconds: float) -> Json:
    running = Running(SERVICE_WITH_KEYS, servers, 0.0, logs)
    try:
        servers.reset()
        SERVICE.prepare(servers)
        began = time.monotonic()
        store(servers, Fill(stored, weeks=count - 1, users=USERS, tenants=TENANTS))
        keys = create_keys(servers, TENANTS)
        settle(running)
        say(f"partitions: {count}, filled in {time.monotonic() - began:.0f} s")
        running.start(fresh=False)
        writes = [post(running.url, bearer(key)) for key in keys]
        _load(running, writes, WARM_UP)
        alone = _writes(running, writes, seconds)
        lists = {
            name: _lists(running, requests, writes, seconds)
            for name, requests in _list_requests(running, keys, count).items()
        }
        return {"partitions": count, "writes": alone, "lists": lists}
    finally:
        running.stop()


def _list_requests(running: Running, keys: list[str], weeks: int) -> dict[str, list[Request]]:
    """Return requests for each kind of list, from tenants at random."""
    base, draw, now = running.url[running.url.index("/api") :], random.Random(1), datetime.now(UTC)
    number = int(LIST_RATE * (WARM_UP + SECONDS) * 1.2)

    def requests(path: str) -> list[Request]:
        paths = []
        for _ in range(number):
            before = now - timedelta(days=max(weeks - 1, 1) * 7 * draw.random())
            user = 1 + draw.randrange(USERS)
            query = path.format(user=user, before=f"{before:%Y-%m-%dT%H:%M:%SZ}")
            paths.append(Request("GET", f"{base}{query}", bearer(draw.choice(keys))))
        return paths

    return {
        "the newest of a tenant, 50 per page": requests(""),
        "a tenant's before a given time": requests("?created_before={before}"),
        "a tenant's failed before a given time": requests("?status=failed&created_before={before}"),
        "one user's": requests("?user_id={user}"),
    }


def _writes(running: Running, writes: list[Request], seconds: float) -> Json:
    """Measure the CPU per notification while nothing is listed."""
    before = running.cpu()
    seen = _load(running, writes, seconds)
    after, accepted = running.cpu(), len(seen["ids"])
    return {
        "post": percentiles(_latencies(seen)),
        "cpu": {name: (after[name] - before[name]) / accepted * 1e6 for name in after},
        "failed": failures(seen),
    }


def _load(running: Running, writes: list[Request], seconds: float) -> dict[str, Any]:
    """Load the service, and wait until everything is sent; only the new rows are counted, because many are stored."""
    sent_since = f"{SERVICE.count} AND id >= '{first_id(datetime.now(UTC))}'"
    seen = generate(running.url, WRITE_RATE, seconds, requests=writes)
    await_(running, lambda: int(str(running.query(sent_since)[0][0])) >= len(seen["ids"]))
    return seen


def _lists(running: Running, lists: list[Request], writes: list[Request], seconds: float) -> Json:
    """Measure one kind of list while notifications are accepted and sent."""
    warm_up = int(LIST_RATE * WARM_UP)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(
            generate, running.url, WRITE_RATE, WARM_UP + seconds, CONNECTIONS, requests=writes, seed=2
        )
        generate(running.url, LIST_RATE, WARM_UP, requests=lists[:warm_up])
        seen = generate(running.url, LIST_RATE, seconds - 1, requests=lists[warm_up:])
        written = writing.result()
    return {
        "list": percentiles(_latencies(seen)), "post": percentiles(_latencies(written)),
        "failed": failures(seen) + failures(written),
    }  # fmt: skip


def _latencies(seen: dict[str, list[float]]) -> list[float]:
    return [answered - due for due, answered in zip(seen["due"], seen["answered"], strict=True)]
