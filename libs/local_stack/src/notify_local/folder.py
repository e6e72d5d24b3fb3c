"""The folder of a local stack: data, logs, process ids and addresses."""

import fcntl
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from notify_local.console import CannotRun, say

STOP_TIMEOUT = 10.0  # seconds


class StackFolder:
    """The files of a local stack. They contain passwords, so only their owner may read them."""

    def __init__(self, path: Path) -> None:
        self.run = path / "run"  # process ids, `<name>.pid`
        self.log = path / "log"  # logs, `<name>.log`
        self.data = path / "data"  # the servers' data
        self.stack_env = path / "stack.env"  # the addresses of the running stack; exists only while it is ready
        self.demo_outcomes = path / "demo.outcome.csv"  # what became of each row of the last demo
        self._lock_file = path / "lock"
        for folder in (path, self.run, self.log, self.data):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, or raise `CannotRun` if another process holds the lock."""
        with self._lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"A stack is running in this folder already; its addresses are in {self.stack_env}."
                raise CannotRun(message) from None
            self.stack_env.unlink(missing_ok=True)
            yield

    def is_locked(self) -> bool:
        """Return True if a stack is running in this folder."""
        with self._lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def password(self) -> str:
        """Return the servers' password. It is generated once and stored with the data that was created with it."""
        file = self.data / "password"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(18))
        return file.read_text()

    def publish(self, addresses: Mapping[str, str]) -> None:
        """Write `stack.env` atomically, so that readers never see a partial file."""
        draft = self.stack_env.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text("".join(f"{name}={value}\n" for name, value in addresses.items()))
        draft.rename(self.stack_env)

    def addresses(self) -> dict[str, str]:
        """Return the published addresses, or an empty mapping if the stack is not ready."""
        try:
            lines = self.stack_env.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines)

    def end_leftovers(self) -> None:
        """End the processes that a killed stack left running."""
        for file in self.run.glob("*.pid"):
            with suppress(psutil.NoSuchProcess, ValueError):
                process = psutil.Process(int(file.read_text()))
                # A process that started after the file was written is unrelated: it merely reuses the process id.
                if process.create_time() <= file.stat().st_mtime + 1:
                    say(f"Stopping {file.stem} (pid {process.pid}), which a killed stack left running")
                    _end(process)
            file.unlink(missing_ok=True)


def _end(process: psutil.Process) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(STOP_TIMEOUT)
