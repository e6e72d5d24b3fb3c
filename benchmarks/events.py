"""`make bench-events`: measure how soon `GET /api/events` reports a change, and what idle subscribers cost."""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks import tables
from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE
from benchmarks.paths import RESULTS
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.servers import circumstances, log_folder, running_servers, write_json
from benchmarks.steps import generate, warm_up

LOW_RATE = 20.0  # requests a second
SUBSCRIBERS = 200
IDLE_USER = 999  # a user without notifications
RATES = (0.0, 200.0)  # requests a second during a measurement
SECONDS = 20.0
ROUNDS = 3  # each round measures without subscribers, then with them
SILENCE = 60.0  # seconds without a heartbeat before a subscriber gives up
LIVE_TIMEOUT = 10.0  # seconds until all subscribers are live
COMMITTED = """
    SELECT id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float FROM deliveries WHERE status = 'sent'
"""

Json = dict[str, Any]


class Subscriber:
    """A client of the event stream that records when it receives each `sent` event."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url
        self.live = asyncio.Event()
        self.received: dict[str, float] = {}
        """The time of each `sent` event in seconds since the epoch, by delivery id."""

    async def run(self) -> None:
        """Read events until cancelled; raise `ConnectionError` if the stream ends."""
        async with self._client.stream("GET", self._url) as response:
            async for line in response.raise_for_status().aiter_lines():
                if line.startswith("data: "):
                    now, data = time.time(), json.loads(line.removeprefix("data: "))
                    if data.get("live"):
                        self.live.set()
                    elif data.get("status") == "sent":
                        self.received[data["delivery_id"]] = now
        raise ConnectionError("the stream has ended")


@asynccontextmanager
async def subscribed(url: str, count: int = 1) -> AsyncIterator[Subscriber]:
    """Keep `count` subscribers connected until the context ends; yield the first of them."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(timeout=SILENCE, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        subscribers = [Subscriber(client, url) for _ in range(count)]
        tasks = [group.create_task(subscriber.run()) for subscriber in subscribers]
        async with asyncio.timeout(LIVE_TIMEOUT):
            for subscriber in subscribers:
                await subscriber.live.wait()
        yield subscribers[0]
        for task in tasks:
            task.cancel()


async def measure_delay(running: Running) -> Json:
    """Measure the time from the commit of a change to the moment when a subscriber has read the event."""
    async with subscribed(_events(running)) as subscriber:
        seen = await asyncio.to_thread(generate, running.url, LOW_RATE, SECONDS)
        await asyncio.sleep(1)
    committed = {str(row[0]): float(str(row[1])) for row in running.query(COMMITTED)}
    delays = [at - committed[delivery] for delivery, at in subscriber.received.items()]
    return {
        "rate": LOW_RATE, "posted": len(seen["ids"]), "received": len(delays), **percentiles(delays),
        "longest": max(delays) * 1000,
    }  # fmt: skip


async def measure_cost(running: Running, rate: float) -> Json:
    """Measure each process's CPU as a percentage of one core, without subscribers and with many idle ones."""
    used: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        running.query(SERVICE.forget)
        without = await _cores(running, rate)
        async with subscribed(_events(running, f"?user_id={IDLE_USER}"), SUBSCRIBERS):
            idle = await _cores(running, rate)
        for case, cores in (("without", without), ("idle", idle)):
            for name, share in cores.items():
                used.setdefault(case, {}).setdefault(name, 0.0)
                used[case][name] += share / ROUNDS
    return {"rate": rate, "subscribers": SUBSCRIBERS, "cores": used}


async def _cores(running: Running, rate: float) -> dict[str, float]:
    before, began = running.cpu(), time.monotonic()
    if rate:
        await asyncio.to_thread(generate, running.url, rate, SECONDS)
    else:
        await asyncio.sleep(SECONDS)
    after, seconds = running.cpu(), time.monotonic() - began
    return {name: (after[name] - before[name]) / seconds * 100 for name in after}


def _events(running: Running, query: str = "") -> str:
    return running.url.replace("/api/notifications", f"/api/events{query}")


async def measure(running: Running) -> Json:
    """Warm the service up, then measure the delay of events and the cost of subscribers."""
    await asyncio.to_thread(warm_up, running)
    delay = await measure_delay(running)
    say(f"events arrive {delay['p50']:.1f} ms after the commit (p50), {delay['longest']:.1f} ms at most")
    costs = []
    for rate in RATES:
        costs.append(await measure_cost(running, rate))
        say(f"at {rate:g}/s: {costs[-1]['cores']}")
    return {"delay": delay, "costs": costs}


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="output folder (default: benchmarks/results)")
    options = parser.parse_args()
    began = time.monotonic()
    with log_folder() as logs, running_servers() as servers:
        versions = servers.versions()
        running = Running(SERVICE, servers, 0.0, logs)
        try:
            running.start()
            figures = asyncio.run(measure(running))
        finally:
            running.stop()
    results = {**circumstances(began, versions), **figures}
    write_json(options.results / "events.json", results)
    if options.results == RESULTS:
        tables.write("events", tables.events(results))
    say(f"Results written to {options.results}")


if __name__ == "__main__":
    main()
