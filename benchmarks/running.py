"""The running processes of a contender, and what they use."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import psycopg

from benchmarks.contenders.contender import Contender, Program
from benchmarks.contenders.ports import free_port
from benchmarks.paths import PROJECT
from benchmarks.servers import Servers

START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 60.0  # seconds
STARTED = b"Application startup complete."  # each of uvicorn's workers logs this


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
    _log_begins: dict[str, int] = field(default_factory=dict)
    """The positions in the programs' logs at which those of their latest starts begin."""
    request_headers: Mapping[str, str] = field(default_factory=dict)
    """The headers of each request, such as an API key."""

    @property
    def url(self) -> str:
        """The URL to post notifications to."""
        return f"http://127.0.0.1:{self.port}/api/notifications"

    def start(self, *, fresh: bool = True) -> None:
        """Start all processes; if `fresh`, empty the database and the broker first."""
        if fresh:
            self.servers.reset()
            self.contender.prepare(self.servers)
            if self.contender.request_headers is not None:
                self.request_headers = self.contender.request_headers(self.servers)
        self.port = self.port or free_port()
        programs = self.contender.programs(self.port)
        self.launch(*(each for each in programs if not (each.sends and self.without_sending)))

    def launch(self, *programs: Program) -> None:
        """Start more processes, and return when they are ready."""
        environment = {**os.environ, **self.contender.environment(self.servers, self.latency)}
        if self.without_sending:
            # BackgroundTasks has no sender that could be left out: its tasks run in the API's processes.
            environment["SENDERS_STOPPED"] = "1"
        for program in programs:
            with self._log(program).open("ab") as log:
                self._log_begins[program.name] = log.tell()
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
                if httpx.get(program.ready, timeout=10, trust_env=False).is_success and self._started(program):
                    return
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.contender.name}: {program.name} is not ready; its log is in {self.logs}")
            time.sleep(0.1)

    def _started(self, program: Program) -> bool:
        """Return whether all workers have started: a worker that starts during a measurement would disturb it."""
        log = self._log(program).read_bytes()[self._log_begins[program.name] :]
        return log.count(STARTED) >= program.workers

    def _log(self, program: Program) -> Path:
        return self.logs / f"{self.contender.key}.{program.name}.log"


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


def memory(pid: int) -> float:
    """Return the memory of a process and its children in MiB: what only they use (USS), so that sums are right."""
    process, used = psutil.Process(pid), 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            used += each.memory_full_info().uss
    return float(used) / 2**20


def peak_memory(pid: int) -> float:
    """Return the peak memory of a process and its children in MiB."""
    process = psutil.Process(pid)
    peak = 0
    for each in (process, *process.children(recursive=True)):
        status = Path(f"/proc/{each.pid}/status").read_text()
        peak += int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    return peak / 1024
