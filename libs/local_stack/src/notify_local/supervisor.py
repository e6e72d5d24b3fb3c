"""Runs processes, writes their output to logs, restarts them when they die and stops them in order."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from notify_local.console import CannotRun, console, say
from notify_local.folder import StackFolder

READY_INTERVAL = 0.1  # seconds
TAIL_LINES = 15  # how many log lines are shown when a program fails
FIRST_RESTART_DELAY = 0.5  # seconds, doubled after each consecutive death
MAX_RESTART_DELAY = 15.0  # seconds
STABLE_AFTER = 30.0  # seconds of running after which a death no longer counts as consecutive
NOT_INHERITED = ("PG", "POSTGRES_", "RABBITMQ_")  # variables that would point a process at other servers
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """A description of a process to run."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    """The working directory; None means the supervisor's own."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 60.0  # seconds before it is killed
    shown: bool = False
    """If True, the output goes to the terminal as well as to the log."""


class Supervisor:
    """A supervisor that restarts programs when they die and stops them in reverse order."""

    def __init__(self, folder: StackFolder) -> None:
        self._folder = folder
        self._running: dict[str, _Supervised] = {}

    async def start(self, program: Program, ready: Callable[[], Awaitable[bool]], timeout: float) -> None:
        """Start `program` and wait until it is ready; raise `CannotRun` if it exits first or `timeout` passes."""
        supervised = await self._spawn(program)
        try:
            async with asyncio.timeout(timeout):
                while not await ready():
                    if supervised.has_exited:
                        raise supervised.failure("exited during startup")
                    await asyncio.sleep(READY_INTERVAL)
        except TimeoutError:
            raise supervised.failure(f"was not ready within {timeout:.0f} s") from None
        supervised.keep_running()

    async def run(self, program: Program) -> None:
        """Run `program` until it exits; raise `CannotRun` if it fails."""
        supervised = await self._spawn(program)
        code = await supervised.finished()
        del self._running[program.name]
        if code:
            raise supervised.failure(f"failed ({_cause(code)})")

    async def stop(self) -> None:
        """Stop all programs one at a time, in the reverse of the order in which they started."""
        for supervised in reversed(self._running.values()):
            await supervised.stop()
        self._running.clear()

    async def _spawn(self, program: Program) -> "_Supervised":
        supervised = _Supervised(program, self._folder)
        await supervised.spawn()
        self._running[program.name] = supervised
        return supervised


class _Supervised:
    """A program and its current process."""

    _process: asyncio.subprocess.Process
    _copying: asyncio.Task[None]

    def __init__(self, program: Program, folder: StackFolder) -> None:
        self._program = program
        self._pid_file = folder.run / f"{program.name}.pid"
        self._log = folder.log / f"{program.name}.log"
        if self._log.exists():
            # If the start fails, the error must not show lines from an earlier run.
            self._log.rename(self._log.with_suffix(".previous.log"))
        self._keeping: asyncio.Task[None] | None = None

    @property
    def has_exited(self) -> bool:
        return self._process.returncode is not None

    def failure(self, problem: str) -> CannotRun:
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return CannotRun(f"{self._program.name} {problem}; see {self._log}\n{tail}")

    async def spawn(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        self._process = await asyncio.create_subprocess_exec(
            *self._program.command,
            cwd=self._program.folder,
            env={**inherited, **self._program.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # In a new session, Ctrl-C does not reach the process, so the supervisor can stop all processes in order.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._pid_file.write_text(f"{self._process.pid}\n")
        self._copying = asyncio.create_task(self._copy_output(self._process))

    async def finished(self) -> int:
        code = await self._process.wait()
        await self._copying
        self._pid_file.unlink(missing_ok=True)
        return code

    def keep_running(self) -> None:
        self._keeping = asyncio.create_task(self._restart_when_it_dies())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if not self.has_exited:
            with suppress(ProcessLookupError):
                self._process.send_signal(self._program.stop_signal)
            try:
                async with asyncio.timeout(self._program.stop_timeout):
                    await self._process.wait()
            except TimeoutError:
                say(f"{self._program.name} did not stop within {self._program.stop_timeout:.0f} s; killing it")
                self._process.kill()
        await self.finished()

    async def _restart_when_it_dies(self) -> None:
        delay = FIRST_RESTART_DELAY
        while True:
            began = asyncio.get_running_loop().time()
            code = await self._process.wait()
            if asyncio.get_running_loop().time() - began > STABLE_AFTER:
                delay = FIRST_RESTART_DELAY
            say(f"{self._program.name} died ({_cause(code)}); restarting it in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, MAX_RESTART_DELAY)
            await self.spawn()
            say(f"{self._program.name} restarted (pid {self._process.pid})")

    async def _copy_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        with self._log.open("ab", buffering=0) as log:
            while line := await _line(process.stdout):
                log.write(line)
                if self._program.shown:
                    text = line.decode(errors="replace").rstrip()
                    console.print(f"{self._program.name:<15} | {text}", markup=False, style=_style(text))


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, or part of it if it is too long, or empty bytes at the end of the stream."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)


def _die_with_parent() -> None:
    """Make the kernel stop this child process if its supervisor is killed (Linux only)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _style(line: str) -> str | None:
    styles = {" WARNING ": "yellow", " ERROR ": "red", " CRITICAL ": "red"}
    return next((style for level, style in styles.items() if level in line), None)
