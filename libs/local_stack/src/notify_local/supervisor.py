"""Runs processes: their output in logs, restarts when they die, an orderly end."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from notify_local.console import console, say
from notify_local.errors import CanNotRun
from notify_local.folder import StackFolder

READY_INTERVAL = 0.1  # seconds
FIRST_RESTART_DELAY = 0.5  # seconds, doubled with each death in a row
LONGEST_RESTART_DELAY = 15.0  # seconds
STABLE_AFTER = 30.0  # seconds of life after which a death is no longer in a row
NOT_INHERITED = ("PG", "POSTGRES_", "RABBITMQ_")
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """How to run one process."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 60.0  # seconds, then it is killed
    shown: bool = False
    """Whether its output is for the terminal too, not only for its log."""


class Supervisor:
    """Runs programs and keeps them running until they are stopped, in the reverse order of their start."""

    def __init__(self, folder: StackFolder) -> None:
        self._folder = folder
        self._running: dict[str, _Supervised] = {}

    async def start(self, program: Program, ready: Callable[[], Awaitable[bool]], timeout: float) -> None:
        """Start and return when it is ready; raise `CanNotRun` where it dies first or takes longer than `timeout`."""
        supervised = _Supervised(program, self._folder)
        self._running[program.name] = supervised
        log = self._folder.log / f"{program.name}.log"
        await supervised.spawn()
        try:
            async with asyncio.timeout(timeout):
                while not await ready():
                    if supervised.ended:
                        raise CanNotRun(f"{program.name} ended at its start; see {log}\n{_tail(log)}")
                    await asyncio.sleep(READY_INTERVAL)
        except TimeoutError:
            raise CanNotRun(f"{program.name} was not ready within {timeout:.0f} s; see {log}\n{_tail(log)}") from None
        supervised.keep_running()

    async def run(self, program: Program) -> None:
        """Run to its end; raise `CanNotRun` where it fails."""
        supervised = self._running[program.name] = _Supervised(program, self._folder)
        await supervised.spawn()
        code = await supervised.finished()
        del self._running[program.name]
        if code:
            log = self._folder.log / f"{program.name}.log"
            raise CanNotRun(f"{program.name} failed ({_cause(code)}); see {log}\n{_tail(log)}")

    async def stop(self) -> None:
        """Stop all, the last started first, each before the next."""
        for supervised in reversed(self._running.values()):
            await supervised.stop()
        self._running.clear()


class _Supervised:
    """One program and its present process."""

    def __init__(self, program: Program, folder: StackFolder) -> None:
        log = folder.log / f"{program.name}.log"
        if log.exists():
            # What is shown when a start fails shall be of this start.
            log.rename(log.with_suffix(".previous.log"))
        self._program = program
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._copying: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._program.command,
            env={**_inherited_environment(), **self._program.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Out of the terminal's group: Ctrl-C is for the supervisor, which stops the rest in order.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._folder.write_pid(self._program.name, self._process.pid)
        self._copying = asyncio.create_task(self._copy_output(self._process))

    async def finished(self) -> int:
        assert self._process is not None  # noqa: S101 - it was spawned
        assert self._copying is not None  # noqa: S101 - as above
        code = await self._process.wait()
        await self._copying
        self._folder.remove_pid(self._program.name)
        return code

    def keep_running(self) -> None:
        self._keeping = asyncio.create_task(self._restart_when_it_dies())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(self._program.stop_signal)
            try:
                async with asyncio.timeout(self._program.stop_timeout):
                    await process.wait()
            except TimeoutError:
                say(f"{self._program.name} did not stop within {self._program.stop_timeout:.0f} s: killed")
                process.kill()
                await process.wait()
        if self._copying is not None:
            await self._copying
        self._folder.remove_pid(self._program.name)

    async def _restart_when_it_dies(self) -> None:
        delay = FIRST_RESTART_DELAY
        while self._process is not None:
            began = asyncio.get_running_loop().time()
            code = await self._process.wait()
            if asyncio.get_running_loop().time() - began > STABLE_AFTER:
                delay = FIRST_RESTART_DELAY
            say(f"{self._program.name} died ({_cause(code)}); restarting it in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_RESTART_DELAY)
            await self.spawn()
            say(f"{self._program.name} restarted (pid {self._process.pid})")

    async def _copy_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        with (self._folder.log / f"{self._program.name}.log").open("ab", buffering=0) as log:
            while line := await _line(process.stdout):
                log.write(line)
                if self._program.shown:
                    text = line.decode(errors="replace").rstrip()
                    console.print(f"{self._program.name:<15} | {text}", markup=False, style=_style(text))


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line, or of an overlong one as much as is there; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)


def _inherited_environment() -> dict[str, str]:
    """The user's, but for what would lead a server or a service elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}


def _die_with_parent() -> None:
    """Runs in the child: a supervisor that is killed takes its processes along (Linux)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _style(line: str) -> str | None:
    for level, style in ((" WARNING ", "yellow"), (" ERROR ", "red"), (" CRITICAL ", "red")):
        if level in line:
            return style
    return None


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
