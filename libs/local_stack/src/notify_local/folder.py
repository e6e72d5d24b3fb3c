"""The folder that holds everything of one local stack: data, logs, process ids, addresses."""

import fcntl
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from notify_local.console import say
from notify_local.errors import CanNotRun

STOP_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class StackFolder:
    """Where one stack keeps its things. Only its owner may look: passwords are among them."""

    path: Path

    def __post_init__(self) -> None:
        for folder in (self.path, self.run, self.log, self.data):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def run(self) -> Path:
        """Process ids, `<name>.pid`."""
        return self.path / "run"

    @property
    def log(self) -> Path:
        """Logs, `<name>.log`."""
        return self.path / "log"

    @property
    def data(self) -> Path:
        """What the servers store."""
        return self.path / "data"

    @property
    def stack_env(self) -> Path:
        """The addresses of the running stack; there only while it is ready."""
        return self.path / "stack.env"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, or raise `CanNotRun` where another process does."""
        with self._lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CanNotRun(
                    f"A stack is running in this folder already; its addresses are in {self.stack_env}."
                ) from None
            self.stack_env.unlink(missing_ok=True)
            try:
                yield
            finally:
                self.stack_env.unlink(missing_ok=True)

    def is_locked(self) -> bool:
        """Whether a stack runs here."""
        with self._lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def _lock_file(self) -> Path:
        return self.path / "lock"

    def password(self) -> str:
        """The servers' password: made once, kept with the data that was created with it."""
        file = self.data / "password"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(18))
        return file.read_text()

    def publish(self, addresses: Mapping[str, str]) -> None:
        """Write `stack.env` at once and whole: who sees it can use it."""
        draft = self.stack_env.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text("".join(f"{name}={value}\n" for name, value in addresses.items()))
        draft.rename(self.stack_env)

    def addresses(self) -> dict[str, str]:
        """What `publish` has written; empty where the stack is not ready."""
        try:
            lines = self.stack_env.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines)

    def write_pid(self, name: str, pid: int) -> None:
        """Record the process id of `name`."""
        (self.run / f"{name}.pid").write_text(f"{pid}\n")

    def remove_pid(self, name: str) -> None:
        """Forget the process id of `name`."""
        (self.run / f"{name}.pid").unlink(missing_ok=True)

    def end_leftovers(self) -> None:
        """End what a killed stack has left running here."""
        for file in self.run.glob("*.pid"):
            try:
                process = psutil.Process(int(file.read_text()))
                # A process younger than the file has only inherited the number.
                if process.create_time() <= file.stat().st_mtime + 1:
                    say(f"Ending {file.stem}, left over by a stack that was killed (pid {process.pid})")
                    _end(process)
            except (psutil.NoSuchProcess, ValueError):
                pass
            file.unlink(missing_ok=True)


def _end(process: psutil.Process) -> None:
    process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(STOP_TIMEOUT)
