"""Measure how much memory the services use during a fault."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import psutil
from support.processes import System

from chaos.scene import PROGRAMS

INTERVAL = 0.25  # seconds
MIB = 1024 * 1024
LIMIT, EMAIL_SENDER_LIMIT = 200, 300  # MiB


@asynccontextmanager
async def watched_memory(system: System) -> AsyncIterator[Mapping[str, int]]:
    """Yield the highest resident memory of each service process in MiB, which is updated until the context ends."""
    peaks: Counter[str] = Counter()
    watching = asyncio.create_task(_watch(system, peaks))
    try:
        yield peaks
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def _watch(system: System, peaks: Counter[str]) -> None:
    while True:
        for program in PROGRAMS:
            # A process that was just killed has no memory.
            with suppress(FileNotFoundError, psutil.Error):
                peaks[program] = max(peaks[program], psutil.Process(system.pid(program)).memory_info().rss // MIB)
        await asyncio.sleep(INTERVAL)


def memory_complaints(peaks: Mapping[str, int]) -> list[str]:
    """Return a complaint about each process that used more than its limit."""
    limits = {name: EMAIL_SENDER_LIMIT if name.startswith("email_sender") else LIMIT for name in peaks}
    return [f"{name} used {peak} MiB" for name, peak in peaks.items() if peak > limits[name]]
