"""A chaos run in a cluster: fail nodes under load, wait until nothing is in flight, audit the result, print a table."""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from notify_local.console import console, say
from rich.table import Table
from support.cluster.brokers import USER, BrokerCluster, running_brokers
from support.cluster.databases import QUORUM, DatabaseCluster, running_databases
from support.processes import running_services

from chaos.audit import QUIET_TIMEOUT, Report, audit, await_quiet
from chaos.ha.faults import inject
from chaos.ha.figures import Delay, delays
from chaos.ha.scene import HaScene
from chaos.load import Load
from chaos.run import SETTINGS, recovery
from chaos.scene import REPLICAS, Fault

LEAD = 8.0  # seconds of load before the first fault, so that it finds messages in the queues


@dataclass(frozen=True)
class HaPlan:
    """The size of a run in a cluster."""

    faults: Sequence[str]
    notifications: int
    """The least number of notifications."""
    rate: float
    """Notifications a second."""
    hold: float = 6.0
    silence: float = 30.0
    replication: Mapping[str, Any] = field(default_factory=lambda: QUORUM)
    patience: float = QUIET_TIMEOUT
    """How long to wait until the clusters are complete again, and until nothing is in flight, in seconds."""
    one_member: bool = False
    """True if queues have only one member, as a negative control."""


@contextmanager
def running_clusters(folder: Path, replication: Mapping[str, Any]) -> Iterator[tuple[BrokerCluster, DatabaseCluster]]:
    """Run both clusters until the context ends; they are complete when it begins."""
    folder.mkdir(parents=True)
    password = secrets.token_hex(12)
    with running_brokers(folder, password) as brokers, running_databases(folder, password, replication) as databases:
        yield brokers, databases


def server_settings(brokers: BrokerCluster, databases: DatabaseCluster) -> dict[str, str]:
    """Return the settings with which the services use the clusters."""
    return {
        "RABBITMQ_HOSTS": brokers.hosts(),
        "RABBITMQ_USER": USER,
        "RABBITMQ_PASSWORD": brokers.password,
        "RABBITMQ_CONNECT_TIMEOUT": "3",
        "RABBITMQ_HEARTBEAT": "4",
        "RABBITMQ_MANAGEMENT_HOSTS": ",".join(f"127.0.0.1:{node.ports.management}" for node in brokers.nodes),
        "POSTGRES_HOSTS": databases.hosts(),
        "POSTGRES_USER": databases.user,
        "POSTGRES_PASSWORD": databases.password,
        "POSTGRES_DATABASE": databases.name,
        "POSTGRES_CONNECT_TIMEOUT": "2",
        "POSTGRES_SSLMODE": "disable",
    }


async def run_ha(folder: Path, plan: HaPlan) -> Report:
    """Run the plan and print what happened."""
    say("Starting three RabbitMQ nodes, and three PostgreSQL members with Patroni and etcd …")
    with running_clusters(folder / "servers", plan.replication) as (brokers, databases):
        await asyncio.gather(brokers.complete(), databases.complete())
        await databases.create_database()
        if plan.one_member:
            await asyncio.to_thread(brokers.shrink)
        ledgers = folder / "simulator"
        settings = {**SETTINGS, **server_settings(brokers, databases), "SIMULATOR_FOLDER": str(ledgers)}
        with running_services(folder / "stack", settings, REPLICAS) as system:
            async with system.client() as first, system.client("GATEWAY_2_URL") as second:
                load = Load([first, second], plan.rate, ahead=20)
                scene = HaScene(system, brokers, databases, load, plan.hold, plan.silence, plan.patience)
                enough = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    group.create_task(load.run(plan.notifications, enough))
                    await asyncio.sleep(LEAD)
                    faults = [await _inject(scene, number, name) for number, name in enumerate(plan.faults, start=1)]
                    enough.set()
            say("load finished: waiting until nothing is in flight")
            urls = databases.url(), brokers.management_url(brokers.nodes[0])
            broker_died = any(fault.of_broker_node for fault in faults)
            await await_quiet(*urls, broker_died=broker_died, timeout=plan.patience)
            report = await audit(*urls, ledgers, load.accepted, faults, max_retries=int(SETTINGS["MAX_RETRIES"]))
            figures = await delays(databases.url(), faults, load.accepted)
    if load.answered != len(load.accepted):
        report.complaints.append(f"{load.answered} requests got a 201, but with {len(load.accepted)} different ids")
    report.complaints += load.refusals[:5] + [each for fault in faults for each in fault.complaints]
    _print(faults, figures, load, report)
    return report


async def _inject(scene: HaScene, number: int, name: str) -> Fault:
    began, accepted = time.monotonic(), len(scene.load.accepted)
    fault = await inject(scene, name)
    fault.recovered_after = await recovery(scene.load, scene.patience)
    fault.accepted = len(scene.load.accepted) - accepted
    say(
        f"{number:>3}  {name:<38} {time.monotonic() - began:5.1f} s; "
        f"{fault.accepted} accepted in this time, {len(scene.load.accepted)} in total"
    )
    return fault


def _print(faults: Sequence[Fault], figures: Sequence[Delay], load: Load, report: Report) -> None:
    by_name = defaultdict[str, list[tuple[Fault, Delay]]](list)
    for fault, delay in zip(faults, figures, strict=True):
        by_name[fault.name].append((fault, delay))
    table = Table(title=f"Chaos in a cluster: {len(faults)} faults, {report.accepted} notifications accepted")
    table.add_column("fault")
    for heading in (
        "times",
        "accepted",
        "sent twice",
        "first 201 s",
        "stall s",
        "99 % within s",
        "slowest s",
        "recovery s",
    ):
        table.add_column(heading, justify="right")
    for name, alike in by_name.items():
        table.add_row(
            name,
            str(len(alike)),
            str(sum(fault.accepted for fault, _ in alike)),
            str(report.sent_twice[name]),
            _range([delay.first_201 for _, delay in alike]),
            _range([delay.stall for _, delay in alike]),
            _range([delay.most for _, delay in alike]),
            _range([delay.slowest for _, delay in alike]),
            _range([fault.recovered_after for fault, _ in alike]),
        )
    console.print(table)
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(report.deliveries.items()))
    say(f"deliveries: {statuses}; requests repeated by the client: {load.repeats}")
    for complaint in report.complaints:
        say(f"  {complaint}")
    say(
        f"Lost: {report.lost} of {report.accepted}, with {len(faults)} faults. Stranded: {report.stranded}. "
        f"Sent twice: {report.sent_twice.total()}. Unexplained findings: {len(report.complaints)}."
    )


def _range(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{median(values):.1f}, at most {max(values):.1f}"
