"""The stack of one side, driven only through interfaces that stay the same between commits.

These are `notify_local up`, its folder, HTTP and the database. Modules and classes of the product change between
commits, so none is imported here.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.checkouts import clean_environment
from benchmarks.load import Request
from benchmarks.pair.sides import Side
from benchmarks.running import cpu_seconds
from benchmarks.servers import addresses_when_ready

SETTINGS = {"AUTH": "off", "TELEGRAM_SLEEP": "0", "ERROR_PROBABILITY": "0", "LOG_LEVEL": "WARNING"}
STOP_TIMEOUT = 120.0  # seconds
# A comparison that is killed must not leave its stack running.
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")


@dataclass(frozen=True)
class Stack:
    """A running stack."""

    folder: Path
    gateway: str
    database: str
    pids: dict[str, int]
    request: Request
    """The request that posts a notification."""

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Return the rows of one statement."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU that each process has used, including child processes."""
        if _pids(self.folder) != self.pids:
            raise SystemExit(f"A process of the stack died and was restarted; the logs are in {self.folder / 'log'}.")
        return {name: cpu_seconds(pid) for name, pid in self.pids.items()}


@contextmanager
def running_stack(side: Side, folder: Path) -> Iterator[Stack]:
    """Run the whole stack of `side` in `folder` until the context ends."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder / "up.log"
    command = [*DIES_WITH_PARENT, str(side.checkout.python), "-m", "notify_local", "--folder", str(folder), "up"]
    with log.open("ab") as output:
        # Services read `.env` in their working directory, so they start in this folder, which has no such file.
        process = subprocess.Popen(
            command, cwd=folder, env={**clean_environment(), **SETTINGS}, stdout=output, stderr=output
        )
        try:
            addresses = addresses_when_ready(process, folder / "stack.env", log)
            yield Stack(folder, addresses["GATEWAY_URL"], addresses["POSTGRES_URL"], _pids(folder), side.request)
        finally:
            _stop(process)


def prepare_template(side: Side, folder: Path, template: Path) -> None:
    """Create the data that each run of `side` starts from: empty servers with the side's schema and queues.

    From its next start, PostgreSQL records the time of each commit. Latencies are computed from these times, so they do
    not depend on the columns that a side writes. RabbitMQ stores the paths of its quorum queues, so the data must be
    created in the folder in which it will be used.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(template, ignore_errors=True)
    with running_stack(side, folder) as stack:
        stack.query("ALTER SYSTEM SET track_commit_timestamp = on")
    template.parent.mkdir(parents=True, exist_ok=True)
    (folder / "data").rename(template)


@contextmanager
def fresh_stack(side: Side, folder: Path, template: Path) -> Iterator[Stack]:
    """Run the stack of `side` on a copy of its template; keep the folder and its logs if the run fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    shutil.copytree(template, folder / "data", symlinks=True)
    # Flush the copy to the disk now, so that this does not happen while something is measured.
    os.sync()
    with running_stack(side, folder) as stack:
        yield stack
    shutil.rmtree(folder)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()  # its child processes die with it
    finally:
        # A second signal must not interrupt this wait: the next run would still find this stack running.
        process.wait(STOP_TIMEOUT)


def _pids(folder: Path) -> dict[str, int]:
    return {file.stem: int(file.read_text()) for file in sorted((folder / "run").glob("*.pid"))}
