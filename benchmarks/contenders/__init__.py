"""The contenders: this service, and the usual alternatives, built as their documentation recommends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import psycopg

from benchmarks.servers import PRODUCT_PYTHON, PROJECT, Servers

START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 60.0  # seconds
PORTS = iter(range(20_000, 30_000))
CELERY_PROCESSES = 2
SENT_NOTIFICATIONS = """
    SELECT id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float FROM notifications WHERE status = 'sent'
"""
TABLE = """
    CREATE TABLE notifications (
        id uuid PRIMARY KEY, user_id bigint NOT NULL, message text NOT NULL, type text NOT NULL, status text NOT NULL,
        created_at timestamptz NOT NULL
    )
"""

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Program:
    """A process of a contender."""

    name: str
    command: Sequence[str]
    ready: str | None = None
    """The URL that returns 2xx once the process is ready; None if there is no such URL."""
    sends: bool = False
    """True if the process is not needed for accepting requests; it is then left out when only that is measured."""


@dataclass(frozen=True)
class Contender:
    """A system to measure: how to start it, and how to find out what it has sent."""

    name: str
    programs: Callable[[int], Sequence[Program]]
    """Returns the contender's processes, with the API on the given port."""
    environment: Callable[[Servers, float], Environment]
    """Returns the processes' environment for a simulated provider latency in seconds."""
    prepare: Callable[[Servers], None]
    sent: str = SENT_NOTIFICATIONS
    """SQL that returns the id of each sent notification and the time at which that status was committed."""
    count: str = "SELECT count(*) FROM notifications WHERE status = 'sent'"
    forget: str = "TRUNCATE notifications"


@dataclass
class Running:
    """The running processes of a contender."""

    contender: Contender
    servers: Servers
    latency: float
    logs: Path
    port: int = 0
    without_sending: bool = False
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The URL to post notifications to."""
        return f"http://127.0.0.1:{self.port}/api/notifications"

    def start(self, *, fresh: bool = True) -> None:
        """Start all processes; if `fresh`, empty the database and the broker first."""
        if fresh:
            self.servers.reset()
            self.contender.prepare(self.servers)
        self.port = self.port or free_port()
        programs = self.contender.programs(self.port)
        self.launch(*(each for each in programs if not (each.sends and self.without_sending)))

    def launch(self, *programs: Program) -> None:
        """Start more processes, and return when they are ready."""
        environment = {**os.environ, **self.contender.environment(self.servers, self.latency)}
        for program in programs:
            with (self.logs / f"{self.contender.name}.{program.name}.log").open("ab") as log:
                self.processes[program.name] = subprocess.Popen(
                    program.command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True
                )
        deadline = time.monotonic() + START_TIMEOUT
        for program in programs:
            self._await_ready(program, deadline)

    def kill(self) -> None:
        """Kill all processes with SIGKILL."""
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait(STOP_TIMEOUT)
        self.processes.clear()

    def stop(self, *names: str) -> None:
        """Terminate the named processes, or all if none is named; kill those that do not exit in time."""
        ending = [self.processes.pop(name) for name in names or list(self.processes)]
        for process in ending:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in ending:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(STOP_TIMEOUT)

    def restart(self) -> None:
        """Restart everything on empty servers."""
        self.kill()
        self.start()

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Return the rows of one statement."""
        with psycopg.connect(self.servers.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU that each process and server has used, including child processes."""
        pids = {name: process.pid for name, process in self.processes.items()} | self.servers.pids
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    def peak_memory(self) -> dict[str, float]:
        """Return the peak memory of each process in MiB, including child processes."""
        return {name: peak_memory(process.pid) for name, process in self.processes.items()}

    def _await_ready(self, program: Program, deadline: float) -> None:
        while True:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise SystemExit(f"{self.contender.name}: {name} exited; its log is in {self.logs}")
            if program.ready is None:
                return
            with suppress(httpx.TransportError):
                if httpx.get(program.ready, timeout=10, trust_env=False).is_success:
                    return
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.contender.name}: {program.name} is not ready; its log is in {self.logs}")
            time.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process and its children have used, including children that have ended."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def peak_memory(pid: int) -> float:
    """Return the peak memory of a process and its children in MiB."""
    process = psutil.Process(pid)
    peak = 0
    for each in (process, *process.children(recursive=True)):
        status = Path(f"/proc/{each.pid}/status").read_text()
        peak += int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    return peak / 1024


def free_port() -> int:
    """Return a different unused port each time, from below the range that outgoing connections use."""
    for port in PORTS:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise SystemExit("No port is free")


def _urls(servers: Servers, latency: float) -> Environment:
    return {
        "DATABASE_URL": servers.database_url, "RABBITMQ_URL": servers.rabbitmq_url, "LATENCY": str(latency)
    }  # fmt: skip


def _create_table(servers: Servers) -> None:
    with psycopg.connect(servers.database_url) as connection:
        connection.execute(TABLE)


def _uvicorn(app: str, port: int) -> Program:
    """Return uvicorn, run as documented but without the access log, which would cost every contender the same."""
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.contenders.{app}", "--port", str(port), "--no-access-log"]
    return Program("api", command, ready=f"http://127.0.0.1:{port}/openapi.json")


def _service_settings(servers: Servers, latency: float) -> Environment:
    return {
        **servers.service_settings(), "AUTH": "off", "ERROR_PROBABILITY": "0", "TELEGRAM_SLEEP": str(latency),
        "LOG_LEVEL": "WARNING", "SHUTDOWN_DELAY": "0",
    }  # fmt: skip


def _migrate(servers: Servers) -> None:
    environment = {**os.environ, **servers.service_settings(), "LOG_LEVEL": "WARNING"}
    subprocess.run([PRODUCT_PYTHON, "-m", "notify_database.migrate"], env=environment, check=True)


def service_program(service: str, number: int = 1, *, port: int | None = None, **settings: str) -> Program:
    """Return a program that runs one of our services as process `number`, with `settings` in its environment."""
    port = port or free_port()
    settings["APP_PORT" if service == "gateway" else "HEALTH_PORT"] = str(port)
    return Program(
        service if number == 1 else f"{service} {number}",
        ["env", *(f"{key}={value}" for key, value in settings.items()), str(PRODUCT_PYTHON), "-m", f"notify_{service}"],
        ready=f"http://127.0.0.1:{port}/readyz",
        sends=service != "gateway",
    )


def maintenance_program(retention_days: int) -> Program:
    """Return the program that drops our partitions that are older than `retention_days`."""
    command = ["env", f"RETENTION_DAYS={retention_days}", str(PRODUCT_PYTHON), "-m", "notify_database.maintenance"]
    return Program("maintenance", command)


SERVICE = Contender(
    name="this service",
    programs=lambda port: [
        service_program("gateway", port=port),
        service_program("telegram_sender"),
        service_program("status_writer"),
    ],
    environment=_service_settings,
    prepare=_migrate,
    sent="""
        SELECT notification_id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float
        FROM deliveries WHERE status = 'sent'
    """,
    count="SELECT count(*) FROM deliveries WHERE status = 'sent'",
    forget="TRUNCATE notifications, deliveries, attempts",
)
BACKGROUND_TASKS = Contender(
    name="BackgroundTasks",
    programs=lambda port: [_uvicorn("background_tasks:app", port)],
    environment=_urls,
    prepare=_create_table,
)
CELERY = Contender(
    name="Celery",
    programs=lambda port: [
        _uvicorn("celery_api:app", port),
        Program(
            "worker",
            [
                sys.executable, "-m", "celery", "-A", "benchmarks.contenders.celery_tasks", "worker",
                "--concurrency", str(CELERY_PROCESSES), "--loglevel", "WARNING",
            ],
            sends=True,
        ),
    ],
    environment=_urls,
    prepare=_create_table,
)  # fmt: skip
BARE_DRIVERS = Contender(
    name="bare drivers",
    programs=lambda port: [
        _uvicorn("bare:app", port),
        Program("sender", [sys.executable, "-m", "benchmarks.contenders.bare", "sender"], sends=True),
        Program("writer", [sys.executable, "-m", "benchmarks.contenders.bare", "writer"], sends=True),
    ],
    environment=_urls,
    prepare=_create_table,
)
CONTENDERS = (SERVICE, BACKGROUND_TASKS, CELERY, BARE_DRIVERS)
