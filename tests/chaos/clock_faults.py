"""Faults of a clock: a third gateway joins the others, accepts notifications, and has the wrong time."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import asyncpg
import httpx
import psutil
from notify_local.ports import Ports
from support.processes import System, answers
from support.servers import PROJECT

from chaos.load import Kind
from chaos.scene import Act, Fault, Scene

RETENTION_DAYS = 7
# Far enough for the gateway to consider the next week too old, and near enough to find a partition for its ids.
SHIFT = timedelta(days=20)
STOP_TIMEOUT = 60.0  # seconds
POST_INTERVAL = 0.05  # seconds
WEEKS = """
    SELECT inhrelid::regclass::text AS partition FROM pg_inherits
    WHERE inhparent IN ('notifications'::regclass, 'deliveries'::regclass, 'attempts'::regclass)
"""


def skewing(shift: timedelta) -> Act:
    """Return a fault that runs a gateway whose clock is wrong by `shift`, with a short retention."""

    async def act(scene: Scene, fault: Fault) -> None:
        weeks = await _weeks(scene.system)
        async with _skewed_gateway(scene.system, shift, fault) as gateway:
            # An even number selects the gateway with the wrong clock; only a repeated request goes to the others.
            load = replace(scene.load, gateways=[gateway, scene.load.gateways[0]], answered=0, repeats=0)
            ends_at, posted = time.monotonic() + scene.hold, 0
            while time.monotonic() < ends_at:
                posted += 2
                await load.post(posted, Kind.PLAIN)
                await asyncio.sleep(POST_INTERVAL)
        scene.load.answered += load.answered
        if load.repeats:
            fault.complaints.append(f"a gateway with a wrong clock refused {load.repeats} of {posted // 2} requests")
        # Nothing in this run is older than the retention, so no week may be dropped.
        if dropped := sorted(weeks - await _weeks(scene.system)):
            fault.complaints.append(f"a gateway with a wrong clock dropped {', '.join(dropped)}")

    return act


async def _weeks(system: System) -> set[str]:
    connection = await asyncpg.connect(system.addresses()["POSTGRES_URL"])
    try:
        return {row["partition"] for row in await connection.fetch(WEEKS)}
    finally:
        await connection.close()


@asynccontextmanager
async def _skewed_gateway(system: System, shift: timedelta, fault: Fault) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway with the settings of the system's own gateway but another clock, until the context ends."""
    ports = Ports()
    port, health_port = (ports.free(preferred) for preferred in (18_080, 18_090))
    environment = {
        **await _gateway_environment(system),
        "APP_PORT": str(port),
        "HEALTH_PORT": str(health_port),
        "RETENTION_DAYS": str(RETENTION_DAYS),
        "PYTHONPATH": str(PROJECT / "tests"),
    }
    with (system.folder / "log" / "skewed_gateway.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "chaos.skewed_gateway", str(shift.total_seconds()),
            env=environment, cwd=system.folder.parent, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await answers(f"http://127.0.0.1:{health_port}/readyz", httpx.codes.OK)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
        process.terminate()
        async with asyncio.timeout(STOP_TIMEOUT):
            if code := await process.wait():
                fault.complaints.append(f"a gateway with a wrong clock ended with exit code {code}")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
            await process.wait()


async def _gateway_environment(system: System) -> dict[str, str]:
    """Return the environment of a running gateway, which may still be restarting after the previous fault."""
    while True:
        with suppress(FileNotFoundError, psutil.Error, OSError):
            if "POSTGRES_HOST" in (environment := psutil.Process(system.pid("gateway")).environ()):
                return environment
        await asyncio.sleep(0.1)
