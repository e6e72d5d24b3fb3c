"""`make bench-events`: how soon `GET /api/events` tells a change, and what those cost who only listen."""

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
from benchmarks.contenders import SERVICE, Running
from benchmarks.measure import generate, percentiles, warm_up
from benchmarks.progress import say
from benchmarks.scale import RESULTS
from benchmarks.servers import circumstances, log_folder, running_servers, write_json

LOW_RATE = 20.0  # requests a second
LISTENERS = 200
SOMEBODY_ELSE = 999  # a user who gets nothing
RATES = (0.0, 200.0)  # requests a second, while they listen
SECONDS = 20.0
ROUNDS = 3  # with and without, in turn
SILENCE = 60.0  # seconds without a heartbeat
LIVE_TIMEOUT = 10.0  # seconds until all of them listen
COMMITTED = """
    SELECT id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float FROM deliveries WHERE status = 'sent'
"""

Json = dict[str, Any]


class Subscriber:
    """One who reads events: when each delivery was told to be sent, in seconds since the epoch."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url
        self.live = asyncio.Event()
        self.told: dict[str, float] = {}

    async def listen(self) -> None:
        """Until cancelled, or raises."""
        async with self._client.stream("GET", self._url) as answer:
            async for line in answer.raise_for_status().aiter_lines():
                if line.startswith("data: "):
                    now, data = time.time(), json.loads(line.removeprefix("data: "))
                    if data.get("live"):
                        self.live.set()
                    elif data.get("status") == "sent":
                        self.told[data["delivery_id"]] = now
        raise ConnectionError("the stream has ended")


@asynccontextmanager
async def listening(url: str, count: int = 1) -> AsyncIterator[Subscriber]:
    """`count` connections that are told what happens, until the context ends; the first of them."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(timeout=SILENCE, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        listeners = [Subscriber(client, url) for _ in range(count)]
        tasks = [group.create_task(listener.listen()) for listener in listeners]
        async with asyncio.timeout(LIVE_TIMEOUT):
            for listener in listeners:
                await listener.live.wait()
        yield listeners[0]
        for task in tasks:
            task.cancel()


async def told_after(running: Running) -> Json:
    """Seconds from the commit of a change until a listener has read of it."""
    async with listening(_events(running)) as listener:
        seen = await asyncio.to_thread(generate, running.url, LOW_RATE, SECONDS)
        await asyncio.sleep(1)
    committed = {str(row[0]): float(str(row[1])) for row in running.query(COMMITTED)}
    after = [at - committed[delivery] for delivery, at in listener.told.items()]
    figures = percentiles(after)
    return {"rate": LOW_RATE, "posted": len(seen["ids"]), "told": len(after), **figures, "longest": max(after) * 1000}


async def cost_of_listening(running: Running, rate: float) -> Json:
    """Percent of one core of each process, with nobody and with many who get nothing."""
    used: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        running.query(SERVICE.forget)
        nobody = await _cores(running, rate)
        async with listening(_events(running, f"?user_id={SOMEBODY_ELSE}"), LISTENERS):
            many = await _cores(running, rate)
        for who, cores in (("nobody", nobody), ("many", many)):
            for name, share in cores.items():
                used.setdefault(who, {}).setdefault(name, 0.0)
                used[who][name] += share / ROUNDS
    return {"rate": rate, "listeners": LISTENERS, "cores": used}


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
    """All of it, on a service that has warmed up."""
    await asyncio.to_thread(warm_up, running)
    told = await told_after(running)
    say(f"told {told['p50']:.1f} ms after the commit (p50), {told['longest']:.1f} ms at most")
    costs = []
    for rate in RATES:
        costs.append(await cost_of_listening(running, rate))
        say(f"at {rate:g}/s: {costs[-1]['cores']}")
    return {"told": told, "costs": costs}


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
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
    say(f"written to {options.results}")


if __name__ == "__main__":
    main()
