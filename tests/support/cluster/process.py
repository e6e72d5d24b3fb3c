"""A server process that stays down when it dies, unlike those of the local stack, until a test starts it again."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

STOP_TIMEOUT = 60.0  # seconds
# The kernel stops the process if this one is killed. `preexec_fn` would do the same, but not safely beside threads.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")


@dataclass
class Process:
    """A program, and the process that runs it, if it runs."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    """The working directory."""
    prefix: Sequence[str] = ()
    """A command that runs the others, for example as another user."""
    running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the program, unless it runs already."""
        if self.running is not None and self.running.poll() is None:
            return
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(  # noqa: S603 - ours
                [*self.prefix, *WITH_PARENT, *self.command],
                cwd=self.folder, env={"PATH": os.environ["PATH"], **self.environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C must not reach the servers: they are stopped in order
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self.running is not None
        return self.running.pid

    def tree(self) -> list[psutil.Process]:
        """Return the process and all its descendants."""
        if self.running is None or self.running.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.running.pid)
            return [process, *process.children(recursive=True)]
        return []

    def reap(self) -> None:
        """Wait for the end of a process that was killed."""
        if self.running is not None:
            self.running.wait(STOP_TIMEOUT)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the process in order, and kill it if it does not stop in time."""
        if self.running is None or self.running.poll() is not None:
            return
        thaw(self.tree())
        self.running.send_signal(number)
        try:
            self.running.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            kill(self.tree())
            self.running.wait(STOP_TIMEOUT)


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill processes with SIGKILL, as a power failure would."""
    _signal(processes, signal.SIGKILL)


def freeze(processes: Sequence[psutil.Process]) -> None:
    """Freeze processes: their connections stay open and silent."""
    _signal(processes, signal.SIGSTOP)


def thaw(processes: Sequence[psutil.Process]) -> None:
    """Let frozen processes continue."""
    _signal(processes, signal.SIGCONT)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            os.kill(process.pid, number)
