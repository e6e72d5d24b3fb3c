"""A chaos run: inject faults under load, wait until nothing is in flight, audit the result, and print a table."""

import asyncio
import random
import re
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import httpx
from notify_local.console import console, say
from rich.table import Table
from support.processes import FINAL, running_system

from chaos.audit import Report, audit, await_quiet
from chaos.faults import LARGE_BODIES, fault_names, inject, series
from chaos.load import Load
from chaos.mail_server import MailServer
from chaos.memory import memory_complaints, watched_memory
from chaos.scene import PROGRAMS, REPLICAS, Fault, Scene

SETTINGS = {
    "TELEGRAM_SLEEP": "0.2", "EMAIL_SLEEP": "0.5", "ERROR_PROBABILITY": "0.1", "RETRY_DELAY": "0.5", "MAX_RETRIES": "8",
    "PROVIDER_TIMEOUT": "5",
}  # fmt: skip
PROBE_TIMEOUT = 120.0  # seconds
POLL_INTERVAL = 0.1  # seconds
EXPECTED_LINE = re.compile(r"(retrying|retried|throttled|failed|expired|cancelled)\b.* notification_id=")
# The limit on log lines per service and fault; a service logs a lasting fault at its start, each minute and at its end.
LINES_PER_FAULT = 12


@dataclass(frozen=True)
class Plan:
    """The size of a chaos run."""

    seed: int
    notifications: int
    faults: int
    seconds: float
    """The duration of the load in seconds."""
    hold: float
    """The duration of lasting faults in seconds."""
    outage: float
    """The duration of provider outages in seconds."""
    smtp: bool = False
    """True if e-mail goes to a mail server instead of the simulator."""
    large: int = 600
    """The number of e-mails with large bodies."""
    only: tuple[str, ...] = ()
    """The names of the faults to inject; if there are none, all except the pauses."""
    pauses: bool = False
    """True if the faults include pauses, which last 40 seconds."""

    def names(self) -> list[str]:
        """Return the names of the faults to choose from."""
        return list(self.only) or fault_names(smtp=self.smtp, pauses=self.pauses)


async def run_chaos(folder: Path, plan: Plan) -> Report:
    """Run the plan and print what happened."""
    ledgers = folder / "simulator"
    settings = {**SETTINGS, "SIMULATOR_FOLDER": str(ledgers)}
    mail_server = MailServer(ledgers) if plan.smtp else None
    if mail_server is not None:
        await mail_server.open()
        settings |= mail_server.environment()
    # Starting the system blocks the event loop, but the mail server does not need the loop until the load begins.
    with running_system(folder / "stack", settings, scale=REPLICAS) as system:
        addresses = system.addresses()
        async with system.client() as first, system.client("GATEWAY_2_URL") as second:
            load = Load([first, second], plan.notifications / plan.seconds, plan.seconds / 10, recipients=plan.smtp)
            rng = random.Random(plan.seed)
            scene = Scene(system, ledgers, rng, plan.hold, plan.outage, load, plan.large, mail_server)
            enough = asyncio.Event()
            loading = asyncio.create_task(load.run(plan.notifications, enough))
            faults = await _inject_faults(scene, plan)
            enough.set()
            await loading
        say("load finished: waiting until nothing is in flight")
        urls = addresses["POSTGRES_URL"], addresses["RABBITMQ_MANAGEMENT_URL"]
        await await_quiet(*urls, broker_died=any("rabbitmq" in fault.killed.values() for fault in faults))
        report = await audit(*urls, ledgers, load.accepted, faults, max_retries=int(SETTINGS["MAX_RETRIES"]))
        report.complaints += floods(system.folder / "log", len(faults))
    if mail_server is not None:
        await mail_server.close()
    if load.answered != len(load.accepted):
        report.complaints.append(f"{load.answered} requests got a 201, but with {len(load.accepted)} different ids")
    report.complaints += load.refusals[:5] + [each for fault in faults for each in fault.complaints]
    _print(plan, faults, load, report)
    return report


async def _inject_faults(scene: Scene, plan: Plan) -> list[Fault]:
    done: list[Fault] = []
    began, load = time.monotonic(), scene.load
    for number, name in enumerate(series(scene, plan.names(), plan.faults), start=1):
        # Spread the faults evenly over the load, unless recoveries take too long for that.
        await asyncio.sleep(max(0.5, began + plan.seconds * number / (plan.faults + 1) - time.monotonic()))
        accepted = len(load.accepted)
        async with watched_memory(scene.system) as peaks:
            fault = await inject(scene, name)
            fault.recovered_after = await recovery(load)
        fault.accepted = len(load.accepted) - accepted
        if name == LARGE_BODIES:
            fault.peaks = dict(peaks)
            fault.complaints += memory_complaints(peaks)
        done.append(fault)
        say(
            f"{number:>3} of {plan.faults}  {name:<30} recovered {fault.recovered_after:5.1f} s after it ended; "
            f"{fault.accepted} accepted until then, {len(load.accepted)} in total"
        )
    return done


async def recovery(load: Load, timeout: float = PROBE_TIMEOUT) -> float:
    """Return how many seconds a notification posted now takes to reach a final status, or `timeout` at most."""
    began = time.monotonic()
    notification_id = await load.post(1)
    for gateway in cycle(load.gateways):
        if time.monotonic() - began >= timeout:
            break
        with suppress(httpx.TransportError):
            response = await gateway.get(f"/api/notifications/{notification_id}")
            if response.is_success and all(each["status"] in FINAL for each in response.json()["deliveries"]):
                return time.monotonic() - began
        await asyncio.sleep(POLL_INTERVAL)
    load.refusals.append(f"a notification was still not final {timeout:.0f} s after a fault: {notification_id}")
    return timeout


def floods(logs: Path, faults: int) -> list[str]:
    """Return a complaint about each service that logged more lines than the faults explain."""
    lines = {name: _own_lines((logs / f"{name}.log").read_text()) for name in PROGRAMS}
    say("lines logged: " + ", ".join(f"{count} {name}" for name, count in lines.items()))
    return [f"{name} logged {count} lines" for name, count in lines.items() if count > LINES_PER_FAULT * (faults + 1)]


def _own_lines(text: str) -> int:
    """Count the log lines, apart from the one line that is expected for each failed attempt and each cancellation."""
    return sum(EXPECTED_LINE.search(line) is None for line in text.splitlines())


def _print(plan: Plan, faults: list[Fault], load: Load, report: Report) -> None:
    by_name: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_name[fault.name].append(fault)
    table = Table(title=f"Chaos, seed {plan.seed}: {len(faults)} faults, {report.accepted} notifications accepted")
    table.add_column("fault")
    for heading in ("times", "accepted until recovery", "sent twice", "recovery s, median", "longest"):
        table.add_column(heading, justify="right")
    for name, alike in sorted(by_name.items()):
        recoveries = [fault.recovered_after for fault in alike]
        table.add_row(
            name,
            str(len(alike)),
            str(sum(fault.accepted for fault in alike)),
            str(report.sent_twice[name]),
            f"{median(recoveries):.1f}",
            f"{max(recoveries):.1f}",
        )
    console.print(table)
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(report.deliveries.items()))
    say(f"deliveries: {statuses}; requests repeated by the client: {load.repeats}")
    if report.lateness:
        late = f"{median(report.lateness):.2f} s (median), at most {max(report.lateness):.1f} s"
        say(f"scheduled notifications: first attempt {late} after the scheduled time")
    for fault in faults:
        if fault.peaks:
            peaks = ", ".join(f"{peak} {program}" for program, peak in fault.peaks.items())
            say(f"{fault.name}: resident memory in MiB, at most: {peaks}")
    for complaint in report.complaints:
        say(f"  {complaint}")
    say(
        f"Lost: {report.lost}. Stranded: {report.stranded}. "
        f"Sent twice: {report.sent_twice.total()}, each explained by a fault. "
        f"Unexplained findings: {len(report.complaints)}."
    )
