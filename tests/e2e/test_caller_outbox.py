"""Business transactions and their notifications survive kills of the caller, the relays, the gateways and the database.

`OUTBOX_SEED=7` kills in another order.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from chaos.audit import audit, await_quiet
from chaos.load import Accepted
from chaos.process_faults import signalled
from chaos.scene import Fault
from sqlalchemy import create_engine
from support.business import URL, prepare
from support.processes import System, running_system
from support.servers import PROJECT, in_containers
from support.services import eventually

SEED = int(os.environ.get("OUTBOX_SEED", "24"))
TRANSACTIONS = 1000
SETTINGS = {"TELEGRAM_SLEEP": "0.01", "EMAIL_SLEEP": "0.01", "ERROR_PROBABILITY": "0", "MAX_RETRIES": "8"}
KILLS = {"caller": 6, "relay": 10, "gateway": 5, "postgres": 3}
LONGEST_PAUSE = 0.3  # seconds from the point that was drawn to the kill
EMPTY_TIMEOUT = 120.0  # seconds; a killed relay's leases last 30
STOP_TIMEOUT = 30.0  # seconds


class Restarted:
    """A process that is started again when it is killed, until it exits by itself."""

    def __init__(self, name: str, module: str, *arguments: str, **environment: str) -> None:
        self.name = name
        self.works = False
        """True once the process has printed something. Killing it earlier would test nothing."""
        self.lines = 0
        self._command = [sys.executable, "-m", module, *arguments]
        self._environment = {**os.environ, "PYTHONPATH": str(PROJECT / "tests"), **environment}
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, log: Path) -> None:
        """Run it; an exit code other than 0 is an error."""
        with log.open("ab", buffering=0) as output:
            while True:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=self._environment,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
                assert self._process.stdout is not None
                while line := await self._process.stdout.readline():
                    output.write(line)
                    self.lines += 1
                    self.works = True
                code = await self._process.wait()
                self.works = False
                if code != -signal.SIGKILL:
                    assert code == 0, f"{self.name} exited with {code}; see {log}"
                    return

    def signal(self, number: signal.Signals) -> None:
        """Send a signal unless the process has exited."""
        if self._process is not None and self._process.returncode is None:
            self.works = False
            self._process.send_signal(number)


class Killer:
    """Kills random processes, and records each kill for the audit."""

    def __init__(self, system: System, callers: Sequence[Restarted], relays: Sequence[Restarted]) -> None:
        self._system = system
        self._ours = {"caller": callers, "relay": relays}
        self._gateways = {"gateway": "GATEWAY_URL", "gateway-2": "GATEWAY_2_URL"}
        self._rng = random.Random(SEED)
        self.faults: list[Fault] = []
        self.kills = Counter[str]()

    async def run(self) -> None:
        """Kill one process after the other, at random points of the business transactions."""
        victims = [name for name, times in KILLS.items() for _ in range(times)]
        self._rng.shuffle(victims)
        points = sorted(self._rng.randrange(TRANSACTIONS // 50, TRANSACTIONS - TRANSACTIONS // 20) for _ in victims)
        for victim, point in zip(victims, points, strict=True):
            while sum(each.lines for each in self._ours["caller"]) < point:  # noqa: ASYNC110 - two processes print them
                await asyncio.sleep(0.01)
            while not (working := await self._working(victim)):  # noqa: ASYNC110 - no event signals it
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._rng.uniform(0, LONGEST_PAUSE))
            self._kill(victim, self._rng.choice(working))

    async def _working(self, victim: str) -> list[str]:
        """Return which of the processes work: killing one that has not yet started would test nothing."""
        if victim in self._ours:
            return [each.name for each in self._ours[victim] if each.works]
        if victim == "gateway":
            return [name for name, url in self._gateways.items() if await self._responds(url)]
        return [victim]

    def _kill(self, victim: str, name: str) -> None:
        began, killed = time.time(), {}
        if victim in self._ours:
            next(each for each in self._ours[victim] if each.name == name).signal(signal.SIGKILL)
        else:
            killed = signalled(self._system, [name], signal.SIGKILL)
            self.faults.append(Fault(f"kill {name}", began, cuts_all=False, killed=killed, ended=time.time()))
        self.kills[victim] += 1

    async def _responds(self, gateway: str) -> bool:
        try:
            async with self._system.client(gateway) as client:
                return (await client.get("/api/notifications?limit=1", timeout=1)).is_success
        except httpx.TransportError:
            return False


@asynccontextmanager
async def running(*processes: Restarted, folder: Path) -> AsyncIterator[None]:
    """Run the processes; at the end, stop them with SIGTERM, and raise the error of any that has failed."""
    tasks = [asyncio.create_task(each.run(folder / f"{each.name}.log")) for each in processes]
    try:
        yield
        for each in processes:
            each.signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_TIMEOUT):
            await asyncio.gather(*tasks)
    finally:
        for each, task in zip(processes, tasks, strict=True):
            task.cancel()
            each.signal(signal.SIGKILL)
        await asyncio.gather(*tasks, return_exceptions=True)


def business_url(addresses: Mapping[str, str], driver: str = "") -> str:
    return addresses["POSTGRES_URL"].rpartition("/")[0].replace("postgresql:", f"postgresql{driver}:") + "/business"


async def create_business(addresses: Mapping[str, str]) -> None:
    connection = await asyncpg.connect(addresses["POSTGRES_URL"])
    await connection.execute("CREATE DATABASE business")
    await connection.close()
    engine = create_engine(business_url(addresses, "+psycopg"))
    prepare(engine)
    engine.dispose()


async def outbox_is_empty(addresses: Mapping[str, str]) -> bool:
    try:
        connection = await asyncpg.connect(business_url(addresses), timeout=5)
        try:
            return not await connection.fetch("SELECT FROM notify_outbox LIMIT 1")
        finally:
            await connection.close()
    except (OSError, asyncpg.PostgresError):
        return False  # the database has not restarted yet


def processes(addresses: Mapping[str, str]) -> tuple[list[Restarted], list[Restarted]]:
    """Return two callers and two relays, with drivers of both kinds."""
    half, url = TRANSACTIONS // 2, {URL: business_url(addresses)}
    callers = [
        Restarted("caller", "support.business", "sync", "1", str(half), **url),
        Restarted("caller-async", "support.business", "async", str(half + 1), str(TRANSACTIONS), **url),
    ]
    relays = [
        Restarted(
            name, "notify_client.outbox", "run", "--poll-interval", "0.1",
            NOTIFY_URL=addresses[gateway], NOTIFY_OUTBOX_URL=business_url(addresses, driver),
        )
        for name, gateway, driver in [
            ("relay", "GATEWAY_URL", "+psycopg"), ("relay-async", "GATEWAY_2_URL", "+asyncpg"),
        ]
    ]  # fmt: skip
    return callers, relays


@pytest.mark.timeout(400)
@pytest.mark.skipif(in_containers(), reason="requires the local stack's private servers")
async def test_each_committed_transaction_sends_exactly_one_notification(tmp_path: Path) -> None:
    ledgers = tmp_path / "simulator"
    settings = {**SETTINGS, "SIMULATOR_FOLDER": str(ledgers)}
    with running_system(tmp_path / "stack", settings, scale={"gateway": 2}) as system:
        addresses = system.addresses()
        await create_business(addresses)
        callers, relays = processes(addresses)
        killer = Killer(system, callers, relays)
        async with running(*relays, folder=tmp_path):
            killing = asyncio.create_task(killer.run())
            await asyncio.gather(*(each.run(tmp_path / f"{each.name}.log") for each in callers))
            killing.cancel()
            await asyncio.wait({killing})
            assert killing.cancelled() or killing.exception() is None
            await eventually(lambda: outbox_is_empty(addresses), "the outbox is empty", EMPTY_TIMEOUT)
        await await_quiet(addresses["POSTGRES_URL"], addresses["RABBITMQ_MANAGEMENT_URL"], broker_died=False)
        await assert_each_order_has_one_notification(addresses)
        await assert_each_was_sent_once(addresses, ledgers, killer.faults)
    print(f"seed {SEED}: kills {dict(killer.kills)}")
    assert all(killer.kills[name] for name in KILLS)


async def assert_each_order_has_one_notification(addresses: Mapping[str, str]) -> None:
    business = await asyncpg.connect(business_url(addresses))
    gateway = await asyncpg.connect(addresses["POSTGRES_URL"])
    try:
        orders = Counter(f"order-{row[0]}" for row in await business.fetch("SELECT number FROM orders"))
        stored = Counter(row[0] for row in await gateway.fetch("SELECT reference FROM notifications"))
    finally:
        await business.close()
        await gateway.close()
    assert orders == Counter(f"order-{number}" for number in range(1, TRANSACTIONS + 1))
    assert stored == orders


async def assert_each_was_sent_once(addresses: Mapping[str, str], ledgers: Path, faults: Sequence[Fault]) -> None:
    """The audit of the chaos test explains each second send by a fault: `docs/guarantees.md` lists those windows."""
    gateway = await asyncpg.connect(addresses["POSTGRES_URL"])
    rows = await gateway.fetch("SELECT id, created_at FROM notifications")
    await gateway.close()
    accepted = {str(row["id"]): Accepted(row["created_at"].timestamp(), channels=1) for row in rows}
    urls = addresses["POSTGRES_URL"], addresses["RABBITMQ_MANAGEMENT_URL"]
    report = await audit(*urls, ledgers, accepted, faults, max_retries=int(SETTINGS["MAX_RETRIES"]))
    print(f"deliveries {dict(report.deliveries)}, sent twice {dict(report.sent_twice)}")
    assert (report.lost, report.stranded, report.complaints) == (0, 0, [])
    assert report.deliveries == {"sent": TRANSACTIONS}
