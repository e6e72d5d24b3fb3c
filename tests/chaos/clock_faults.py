"""Faults of a clock: a third gateway joins the others, accepts notifications, and has the wrong time."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import httpx
import psutil
from notify_local.ports import Ports
from support.processes import System, answers
from support.servers import PROJECT

from chaos.load import Kind
from chaos.scene import Act, Fault, Scene

SHIFT = timedelta(days=20)  # near enough to find a partition for the ids of the gateway
STOP_TIMEOUT = 60.0  # seconds
POST_INTERVAL = 0.05  # seconds


def skewing(shift: timedelta) -> Act:
    """Return a fault that runs a gateway whose clock is wrong by `shift`."""

    async def act(scene: Scene, fault: Fault) -> None:
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

    return act


@asynccontextmanager
async def _skewed_gateway(system: System, shift: timedelta, fault: Fault) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway with the settings of the system's own gateway but another clock, until the context ends."""
    ports = Ports()
    port, health_port = (ports.free(preferred) for preferred in (18_080, 18_090))
    environment = {
        **await _gateway_environment(system),
        "APP_PORT": str(port),
        "HEALTH_PORT": str(health_port),
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
