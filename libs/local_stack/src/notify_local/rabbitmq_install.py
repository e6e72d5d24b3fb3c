"""Finds RabbitMQ on this machine or installs it from the machine's package manager."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from notify_local.console import CannotRun, say

# The script in /usr/sbin is not used, because it would switch to the package's user and data folder.
DEBIAN_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
POLICY = Path("/usr/sbin/policy-rc.d")
FORBID_STARTS = "#!/bin/sh\nexit 101\n"  # https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
NOT_INSTALLED = """RabbitMQ is not installed, and this command cannot install it here ({reason}).
Do one of these:
  - install RabbitMQ 3.10 or newer yourself (https://www.rabbitmq.com/docs/download), then run this again
  - run this where Homebrew or apt-get (as root or with passwordless sudo) is available
  - run the system with Docker Compose, which includes RabbitMQ"""


def rabbitmq_server(log: Path) -> Path:
    """Return the path of `rabbitmq-server`, installing it if it is missing; the installer's output goes to `log`."""
    with _one_at_a_time():
        return _find() or _install(log)


def _install(log: Path) -> Path:
    if shutil.which("apt-get"):
        _install_with_apt(log)
    elif brew := shutil.which("brew"):
        say("Installing RabbitMQ with Homebrew (only once) …")
        _run([brew, "install", "rabbitmq"], log)
    else:
        raise CannotRun(NOT_INSTALLED.format(reason="neither apt-get nor Homebrew is available"))
    if found := _find():
        return found
    raise CannotRun(NOT_INSTALLED.format(reason=f"the package contains no rabbitmq-server; see {log}"))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold a lock that all stacks of this user share, because several may start at the same time."""
    with Path(tempfile.gettempdir(), f"notify-rabbitmq-install-{os.geteuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find() -> Path | None:
    if DEBIAN_SERVER.exists():
        return DEBIAN_SERVER
    if brew := shutil.which("brew"):
        prefix = subprocess.run([brew, "--prefix"], capture_output=True, text=True, check=False).stdout.strip()
        server = Path(prefix, "opt/rabbitmq/sbin/rabbitmq-server")
        if server.exists():
            return server
    on_path = shutil.which("rabbitmq-server")
    return Path(on_path) if on_path else None


def _install_with_apt(log: Path) -> None:
    sudo: list[str] = []
    if os.geteuid() != 0:
        sudo = ["sudo", "-n"]
        if not shutil.which("sudo") or subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode:
            raise CannotRun(NOT_INSTALLED.format(reason="you are not root, and sudo is missing or asks for a password"))
    say("Installing RabbitMQ with apt-get (only once, takes about half a minute) …")
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    _run([*apt, "update"], log)
    with _services_stay_stopped(sudo):
        _run([*apt, "install", "-y", "--no-install-recommends", "rabbitmq-server"], log)
    if Path("/run/systemd/system").exists():
        # Only the private node is needed, so the package's own broker must not start at the next boot either.
        _run([*sudo, "systemctl", "disable", "--now", "rabbitmq-server"], log)


@contextmanager
def _services_stay_stopped(sudo: Sequence[str]) -> Iterator[None]:
    """Keep the installed packages from starting their services, unless the machine has its own policy for that."""
    if POLICY.exists():
        yield
        return
    subprocess.run([*sudo, "tee", POLICY], input=FORBID_STARTS, text=True, stdout=subprocess.DEVNULL, check=True)
    try:
        subprocess.run([*sudo, "chmod", "755", POLICY], check=True)
        yield
    finally:
        subprocess.run([*sudo, "rm", "-f", POLICY], check=True)


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise CannotRun(NOT_INSTALLED.format(reason=f"`{' '.join(map(str, command))}` failed; see {log}"))
