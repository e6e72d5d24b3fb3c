"""A private PostgreSQL primary with a streaming standby, which tests may pause, promote and kill."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from notify_database.engine import PostgresSettings, create_engine, execute
from notify_local import postgres
from notify_local.folder import StackFolder
from notify_local.ports import Ports
from notify_local.supervisor import Program
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from support.services import eventually
from support.tls_servers import await_server, running_program

PASSWORD = "the same for both servers"
DATABASE = "postgres"
# Each session whose COMMIT waits until a standby has the transaction.
WAITING = text("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
CANCEL = text("SELECT pg_cancel_backend(:pid)")


class Server:
    """One of the two servers."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self._process = process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def settings(self) -> PostgresSettings:
        return server_settings(postgres_host="127.0.0.1", postgres_port=self.port)

    def engine(self) -> AsyncEngine:
        """Return an administrator's engine."""
        return create_engine(self.settings, pool_size=2)

    def kill(self) -> None:
        """End the server without a shutdown."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the server accept connections, because the kernel does, and do nothing else."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        main = psutil.Process(self._process.pid)
        for process in (main, *main.children(recursive=True)):
            process.send_signal(number)


def server_settings(**given: object) -> PostgresSettings:
    """Return the settings of the administrator."""
    login = {"postgres_user": postgres.USER, "postgres_password": PASSWORD, "postgres_database": DATABASE}
    return PostgresSettings.model_validate({**login, "postgres_sslmode": "disable", **given})


def hosts_settings(*hosts: str, **given: object) -> PostgresSettings:
    """Return the settings of the administrator for several servers, which are tried in this order."""
    settings = server_settings(postgres_hosts=",".join(hosts), postgres_connect_timeout=0.5, **given)
    servers = settings.postgres_servers()
    while str(servers.first) != hosts[0]:
        servers.failed(servers.first)
    return settings


@contextmanager
def running_pair(path: Path) -> Iterator[tuple[Server, Server]]:
    """Run a primary and its standby; the primary waits for the standby at each commit once `wait_for_standby` ran."""
    ports = Ports()
    with _running(path / "primary", ports) as primary:
        folder = StackFolder(path / "standby")
        _copy(primary.port, folder.data / "postgres")
        with _running(path / "standby", ports) as standby:
            yield primary, standby


@contextmanager
def _running(path: Path, ports: Ports) -> Iterator[Server]:
    folder = StackFolder(path)
    (folder.data / "password").write_text(PASSWORD)
    port = ports.free(5432)
    program = postgres.prepare_postgres(folder, port)
    # Commits of the tests need not survive a crash of the machine.
    program = Program("postgres", [*program.command, "--fsync=off"], stop_signal=signal.SIGQUIT)
    with running_program(program, folder) as process:
        ready = [str(postgres.binary("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port), "-d", DATABASE]
        await_server(lambda: not subprocess.run(ready, check=False).returncode, process, folder.log / "postgres.log")  # noqa: S603 - ours
        yield Server(port, process)


def _copy(port: int, cluster: Path) -> None:
    prefix: Sequence[str] = postgres.AS_NOBODY_IN_NAMESPACE if os.geteuid() == 0 else ()
    command = [
        *prefix, str(postgres.binary("pg_basebackup")), "--pgdata", str(cluster), "--write-recovery-conf",
        "--checkpoint=fast", "--no-sync", "--host=127.0.0.1", f"--port={port}", "--username", postgres.USER,
    ]  # fmt: skip
    done = subprocess.run(  # noqa: S603 - ours
        command, env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def wait_for_standby(primary: AsyncEngine) -> None:
    """Let each commit wait for the standby from now on."""
    async with primary.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = '*'"))
        await connection.execute(text("SELECT pg_reload_conf()"))

    async def is_synchronous() -> bool:
        found = await execute(primary, text("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"))
        return bool(found.scalar_one())

    await eventually(is_synchronous, "the standby is synchronous")


async def waiting_commits(primary: AsyncEngine, count: int) -> list[int]:
    """Wait until `count` commits wait for the standby; return the process ids of their sessions."""
    found: list[int] = []

    async def they_wait() -> bool:
        found[:] = (await execute(primary, WAITING)).scalars()
        return len(found) == count

    await eventually(they_wait, f"{count} commits wait for the standby")
    return found
