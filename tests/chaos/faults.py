"""Inject the faults of a chaos run, and record which processes each of them killed."""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import psutil
from notify_local.rabbitmq_install import rabbitmq_server
from notify_local.stack import SENDERS, SERVICES
from support.processes import System

from chaos.mail_server import MailServer

REPLICAS = dict.fromkeys(SERVICES, 2)
PROGRAMS = tuple(name for service in SERVICES for name in (service, f"{service}-2"))
MAIL_SERVER_DOWN = "mail server down"
LOW_WATERMARK, NORMAL_WATERMARK = "0.00001", "0.6"  # fractions of the machine's memory
LOCKED = "LOCK TABLE notifications, deliveries, attempts, outbox IN ACCESS EXCLUSIVE MODE"


@dataclass
class Fault:
    """A record of an injected fault; times are in seconds since the epoch."""

    name: str
    began: float
    cuts_all: bool
    """True if every connection to RabbitMQ was lost."""
    killed: dict[int, str] = field(default_factory=dict)
    """The names of the processes killed by SIGKILL, by process id; those stopped by SIGTERM are not included."""
    ended: float = 0.0
    accepted: int = 0
    """The number of notifications accepted from the start of the fault until the system recovered."""
    recovered_after: float = 0.0
    """The seconds that a notification posted at the end of the fault took to reach a final status."""


Act = Callable[[Fault], Awaitable[None]]


class Faults:
    """Injects faults by name.

    Failing providers and mail servers recover after `outage` seconds; other lasting faults end after `hold` seconds.
    """

    def __init__(
        self,
        system: System,
        simulator_folder: Path,
        rng: random.Random,
        hold: float,
        outage: float,
        mail_server: MailServer | None = None,
    ) -> None:
        self._system = system
        self._mode = simulator_folder / "mode"
        self._rng = rng
        self._hold = hold
        self._acts: dict[str, tuple[Act, bool]] = {
            "kill -9 one gateway": (self._killing("gateway"), False),
            "kill -9 every gateway": (self._killing("gateway", "gateway-2"), False),
            "kill -9 every status_writer": (self._killing("status_writer", "status_writer-2"), False),
            **{f"kill -9 one {sender}": (self._killing(sender), False) for sender in SENDERS},
            "kill -9 every telegram_sender": (self._killing("telegram_sender", "telegram_sender-2"), False),
            "kill -9 several services": (self._kill_several, False),
            "SIGTERM a service": (self._terminate_one, False),
            "kill -9 RabbitMQ": (self._killing("rabbitmq"), True),
            "close connections": (self._close_connections, True),
            "PostgreSQL immediate stop": (self._stop_postgres, False),
            "RabbitMQ and PostgreSQL down": (self._kill_both, True),
            "memory alarm": (self._memory_alarm, False),
            "tables locked": (self._lock_tables, False),
            "provider hangs": (self._misbehaving("hang", hold), False),
            "provider fails": (self._misbehaving("fail", outage), False),
        }
        if mail_server is not None:
            self._acts[MAIL_SERVER_DOWN] = (self._mail_server_down(mail_server, outage), False)

    def series(self, count: int) -> list[str]:
        """Return the names of `count` random faults; no fault is repeated before all the others have occurred."""
        names: list[str] = []
        while len(names) < count:
            names += self._rng.sample(sorted(self._acts), len(self._acts))
        return names[:count]

    async def inject(self, name: str) -> Fault:
        """Inject a fault, and return when it is over; killed processes may still be restarting."""
        act, cuts_all = self._acts[name]
        fault = Fault(name, time.time(), cuts_all)
        await act(fault)
        fault.ended = time.time()
        return fault

    def _killing(self, *programs: str) -> Act:
        async def act(fault: Fault) -> None:
            self._signal(fault, programs, signal.SIGKILL)

        return act

    async def _kill_several(self, fault: Fault) -> None:
        self._signal(fault, self._rng.sample(PROGRAMS, 3), signal.SIGKILL)

    async def _terminate_one(self, fault: Fault) -> None:
        self._signal(fault, [self._rng.choice(PROGRAMS)], signal.SIGTERM)

    async def _stop_postgres(self, _: Fault) -> None:
        os.kill(self._system.pid("postgres"), signal.SIGQUIT)

    async def _kill_both(self, fault: Fault) -> None:
        self._signal(fault, ["rabbitmq"], signal.SIGKILL)
        os.kill(self._system.pid("postgres"), signal.SIGQUIT)

    async def _close_connections(self, _: Fault) -> None:
        async with httpx.AsyncClient(base_url=self._system.addresses()["RABBITMQ_MANAGEMENT_URL"]) as management:
            for connection in (await management.get("/api/connections")).raise_for_status().json():
                await management.delete(f"/api/connections/{connection['name']}")

    async def _memory_alarm(self, _: Fault) -> None:
        await self._rabbitmqctl("set_vm_memory_high_watermark", LOW_WATERMARK)
        await asyncio.sleep(self._hold)
        await self._rabbitmqctl("set_vm_memory_high_watermark", NORMAL_WATERMARK)

    async def _lock_tables(self, _: Fault) -> None:
        connection = await asyncpg.connect(self._system.addresses()["POSTGRES_URL"])
        try:
            held = False
            while not held:
                # PostgreSQL locks the tables one by one; if that deadlocks with a service, it may cancel this lock.
                with suppress(asyncpg.DeadlockDetectedError):
                    async with connection.transaction():
                        await connection.execute(LOCKED)
                        held = True
                        await asyncio.sleep(self._hold)
        finally:
            await connection.close()

    def _misbehaving(self, mode: str, seconds: float) -> Act:
        async def act(_: Fault) -> None:
            self._mode.write_text(mode)
            await asyncio.sleep(seconds)
            self._mode.unlink()

        return act

    def _mail_server_down(self, mail_server: MailServer, seconds: float) -> Act:
        async def act(_: Fault) -> None:
            await mail_server.down(seconds)

        return act

    def _signal(self, fault: Fault, programs: Iterable[str], number: signal.Signals) -> None:
        for program in programs:
            try:
                pid = self._system.pid(program)
                os.kill(pid, number)
            except (FileNotFoundError, ProcessLookupError):
                continue  # still down from the previous fault
            if number is signal.SIGKILL:
                fault.killed[pid] = program

    async def _rabbitmqctl(self, *arguments: str) -> None:
        """Run `rabbitmqctl` on the private node, with the node's environment variables."""
        environment = psutil.Process(self._system.pid("rabbitmq")).environ()
        environment.pop("RUNNING_UNDER_SYSTEMD", None)
        command = rabbitmq_server(self._system.folder / "install.log").with_name("rabbitmqctl")
        process = await asyncio.create_subprocess_exec(
            command, "--node", environment["RABBITMQ_NODENAME"], *arguments,
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
