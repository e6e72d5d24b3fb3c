"""Compare the CPU that a notification costs on three nodes with that on one, all on one machine."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from notify_local.console import console, say
from rich.table import Table
from support.cluster.databases import QUORUM
from support.processes import System, running_services, running_system

from chaos.audit import await_quiet
from chaos.ha.run import running_clusters, server_settings
from chaos.load import Load
from chaos.run import SETTINGS

RATE = 60.0  # notifications a second
WARM_UP, MEASURED = 300, 3_000  # notifications
IDLE = 10.0  # seconds
Parts = Callable[[], Mapping[str, list[psutil.Process]]]
Used = Mapping[str, Mapping[int, float]]
SINGLE_SERVERS = {"rabbitmq": ("rabbitmq", "epmd"), "postgres": ("postgres",)}


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds for each notification, by part of the system, and the CPU that it uses when idle."""

    parts: Mapping[str, float]
    idle: float
    """In seconds of CPU a second."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


async def compare_cost(folder: Path) -> None:
    """Measure both, and print a table."""
    single, cluster = await _single(folder / "single-stack"), await _cluster(folder / "cluster")
    table = Table(title=f"CPU per notification in ms, at {RATE:.0f} notifications a second, with three deliveries each")
    for heading in ("", *single.parts, "total", "idle: CPUs"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, cost in (("one node of each", single), ("three nodes of each", cluster)):
        table.add_row(name, *(f"{part:.1f}" for part in cost.parts.values()), f"{cost.total:.1f}", f"{cost.idle:.2f}")
    console.print(table)
    say(f"Three nodes use {cluster.total / single.total:.2f} times the CPU of one.")


async def _single(folder: Path) -> Cost:
    with running_system(folder, SETTINGS) as system:

        def parts() -> Mapping[str, list[psutil.Process]]:
            servers = {
                name: [process for program in programs for process in _tree(system.pid(program))]
                for name, programs in SINGLE_SERVERS.items()
            }
            return _with_services(system, servers)

        addresses = system.addresses()
        return await _measure(system, parts, addresses["POSTGRES_URL"], addresses["RABBITMQ_MANAGEMENT_URL"])


async def _cluster(folder: Path) -> Cost:
    with running_clusters(folder / "servers", QUORUM) as (brokers, databases):
        await asyncio.gather(brokers.complete(), databases.complete())
        await databases.create_database()
        settings = {**SETTINGS, **server_settings(brokers, databases)}
        with running_services(folder / "stack", settings, {}) as system:

            def parts() -> Mapping[str, list[psutil.Process]]:
                servers = {
                    "rabbitmq": [each for node in brokers.nodes for each in (*node.processes(), *node.mapper.tree())],
                    "postgres": [each for member in databases.members for each in member.processes()],
                }
                return _with_services(system, servers)

            return await _measure(system, parts, databases.url(), brokers.management_url(brokers.nodes[0]))


async def _measure(system: System, parts: Parts, postgres_url: str, management_url: str) -> Cost:
    async with system.client() as client:
        load = Load([client], RATE, ahead=5)
        await load.run(WARM_UP)
        await await_quiet(postgres_url, management_url, broker_died=False)
        before, began = _used(parts()), time.monotonic()
        await asyncio.sleep(IDLE)
        idle = sum(_difference(before, _used(parts())).values()) / (time.monotonic() - began)
        before = _used(parts())
        await load.run(MEASURED)
        await await_quiet(postgres_url, management_url, broker_died=False)
        spent = _difference(before, _used(parts()))
    return Cost({name: 1000 * seconds / MEASURED for name, seconds in spent.items()}, idle)


def _with_services(system: System, servers: Mapping[str, list[psutil.Process]]) -> Mapping[str, list[psutil.Process]]:
    own = {process.pid for processes in servers.values() for process in processes}
    children = psutil.Process(system.process.pid).children(recursive=True)
    return {**servers, "services": [process for process in children if process.pid not in own]}


def _tree(pid: int) -> Iterable[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _used(parts: Mapping[str, list[psutil.Process]]) -> Used:
    """Return the CPU seconds of each process. Those of processes that end are lost, but under steady load few do."""
    used: dict[str, dict[int, float]] = {}
    for name, processes in parts.items():
        used[name] = {}
        for process in processes:
            times = process.cpu_times()
            used[name][process.pid] = times.user + times.system
    return used


def _difference(before: Used, after: Used) -> Mapping[str, float]:
    return {
        name: sum(seconds - before[name].get(pid, 0.0) for pid, seconds in each.items()) for name, each in after.items()
    }
