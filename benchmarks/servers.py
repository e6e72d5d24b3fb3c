"""The private PostgreSQL and RabbitMQ servers, which the contenders use one after another."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import psycopg

from benchmarks.paths import PRODUCT_PYTHON

START_TIMEOUT = 240.0  # seconds; RabbitMQ may have to be installed first
LOG_LINES = 20  # lines of the log to show if the stack does not start
VHOST = "bench"
DATABASE = "bench"


@dataclass(frozen=True)
class Servers:
    """Both servers, with a database and a virtual host that are recreated for each contender."""

    postgres: str
    """The URL of the server's maintenance database, used for dropping and creating the contenders' database."""
    rabbitmq: str
    management: str
    pids: dict[str, int]
    folder: Path
    """The folder of the local stack, with the servers' data."""

    @property
    def database_url(self) -> str:
        """The URL of the contenders' database."""
        return self.postgres.rpartition("/")[0] + f"/{DATABASE}"

    @property
    def rabbitmq_url(self) -> str:
        """The URL of the contenders' virtual host."""
        return self.rabbitmq.rpartition("/")[0] + f"/{quote(VHOST, safe='')}"

    def service_settings(self) -> dict[str, str]:
        """Return the settings that connect this service to both servers."""
        postgres, rabbitmq = urlsplit(self.postgres), urlsplit(self.rabbitmq)
        return {
            "POSTGRES_HOST": str(postgres.hostname), "POSTGRES_PORT": str(postgres.port),
            "POSTGRES_USER": str(postgres.username), "POSTGRES_PASSWORD": str(postgres.password),
            "POSTGRES_DATABASE": DATABASE,
            "RABBITMQ_HOST": str(rabbitmq.hostname), "RABBITMQ_PORT": str(rabbitmq.port),
            "RABBITMQ_USER": str(rabbitmq.username), "RABBITMQ_PASSWORD": str(rabbitmq.password),
            "RABBITMQ_VHOST": VHOST,
        }  # fmt: skip

    def reset(self) -> None:
        """Recreate the database and the virtual host, so that both are empty."""
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {DATABASE}")
            connection.execute("CHECKPOINT")
        user = urlsplit(self.rabbitmq).username
        with httpx.Client(base_url=self.management, timeout=60, trust_env=False) as management:
            management.delete(f"/api/vhosts/{VHOST}")
            management.put(f"/api/vhosts/{VHOST}").raise_for_status()
            rights = {"configure": ".*", "write": ".*", "read": ".*"}
            management.put(f"/api/permissions/{VHOST}/{user}", json=rights).raise_for_status()

    def execute(self, statement: str) -> None:
        """Execute a statement in the contenders' database."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute(statement)

    def acknowledged(self, queue: str) -> int:
        """Return how many messages in a queue have been acknowledged; RabbitMQ's count lags by a few seconds."""
        with httpx.Client(base_url=self.management, timeout=60, trust_env=False) as management:
            found = management.get(f"/api/queues/{VHOST}/{queue}").raise_for_status().json()
        return int(found.get("message_stats", {}).get("ack", 0))

    def queued(self, queue: str) -> int:
        """Return how many messages a queue holds; RabbitMQ's count lags by a few seconds."""
        with httpx.Client(base_url=self.management, timeout=60, trust_env=False) as management:
            found = management.get(f"/api/queues/{VHOST}/{queue}").raise_for_status().json()
        return int(found.get("messages", 0))

    def broker_disk(self) -> float:
        """Return the MiB that RabbitMQ's data takes on the disk."""
        return folder_size(self.folder / "data" / "rabbitmq" / "mnesia")

    def database_disk(self) -> float:
        """Return the MiB of the contenders' database, without the write-ahead log."""
        with psycopg.connect(self.postgres) as connection:
            [size] = connection.execute(f"SELECT pg_database_size('{DATABASE}')").fetchone() or [0]
        return float(size) / 2**20

    def versions(self) -> dict[str, str]:
        """Return the versions of both servers and PostgreSQL's durability settings."""
        with psycopg.connect(self.postgres) as connection:
            [version] = connection.execute("SHOW server_version").fetchone() or [""]
            settings = {
                name: (connection.execute(f"SHOW {name}").fetchone() or [""])[0]
                for name in ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
            }
        with httpx.Client(base_url=self.management, timeout=60, trust_env=False) as management:
            overview = management.get("/api/overview").raise_for_status().json()
        return {
            "PostgreSQL": version, **settings,
            "RabbitMQ": overview["rabbitmq_version"], "Erlang": overview["erlang_version"],
        }  # fmt: skip


@contextmanager
def log_folder() -> Iterator[Path]:
    """Create a folder for the logs, and remove it if the benchmark succeeds."""
    folder = Path(tempfile.mkdtemp(prefix="bench-logs-"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def running_servers() -> Iterator[Servers]:
    """Run the local stack's servers in a temporary folder, with PostgreSQL recording the time of each commit."""
    # A benchmark that is terminated must stop its servers and processes, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with _running(folder) as servers, psycopg.connect(servers.postgres, autocommit=True) as connection:
            # Every contender's latencies end at the time at which a row was committed as sent.
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        with _running(folder) as servers:
            yield servers


@contextmanager
def _running(folder: Path) -> Iterator[Servers]:
    command = [str(PRODUCT_PYTHON), "-m", "notify_local", "--folder", str(folder / "stack"), "servers"]
    log = folder / "servers.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, env=dict(os.environ), stdout=output, stderr=output)
        try:
            addresses = addresses_when_ready(process, folder / "stack" / "stack.env", log)
            run = folder / "stack" / "run"
            yield Servers(
                addresses["POSTGRES_URL"],
                addresses["RABBITMQ_URL"],
                addresses["RABBITMQ_MANAGEMENT_URL"],
                {name: int((run / f"{name}.pid").read_text()) for name in ("postgres", "rabbitmq")},
                folder / "stack",
            )
        finally:
            process.terminate()
            process.wait(60)


def addresses_when_ready(process: "subprocess.Popen[bytes]", file: Path, log: Path) -> dict[str, str]:
    """Wait for a starting stack, and return the addresses that it writes to `stack.env` once it is ready."""
    deadline = time.monotonic() + START_TIMEOUT
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The stack did not start:\n{_tail(log)}")
        time.sleep(0.1)
    return read_addresses(file)


def read_addresses(file: Path) -> dict[str, str]:
    """Return the addresses in the `stack.env` of a stack that is ready."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def _tail(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-LOG_LINES:])


def folder_size(folder: Path) -> float:
    """Return the MiB that a folder takes on the disk; files may disappear meanwhile."""
    blocks = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            blocks += file.stat().st_blocks
    return blocks * 512 / 2**20


def machine() -> dict[str, str]:
    """Return a description of the machine."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cores": str(os.cpu_count()),
        "processor": model[0].partition(": ")[2] if model else os.uname().machine,
        "memory": f"{int(memory.split()[1]) / 2**20:.0f} GiB",
        "system": f"{os.uname().sysname} {os.uname().release}",
    }


def circumstances(began: float, versions: dict[str, str]) -> dict[str, object]:
    """Return the time, duration and machine of a benchmark that began at the monotonic time `began`."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": (time.monotonic() - began) / 60,
        "machine": machine(),
        "servers": versions,
    }


def write_json(file: Path, content: object) -> None:
    """Write raw results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
