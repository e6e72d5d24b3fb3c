"""Finds RabbitMQ on this machine or installs it from the machine's package manager."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from notify_local.console import say
from notify_local.errors import CanNotRun

# The package's own script: the one in /usr/sbin would switch to the package's user and its data.
DEBIAN_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
POLICY = Path("/usr/sbin/policy-rc.d")
FORBID_STARTS = "#!/bin/sh\nexit 101\n"  # https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
WAYS_ON = """RabbitMQ is not installed, and this command can not install it here ({reason}).
Ways to go on:
  - install RabbitMQ 3.10 or newer yourself (https://www.rabbitmq.com/docs/download), then run this again
  - run it as root or with passwordless sudo where apt-get is, or where Homebrew is
  - run the system with Docker Compose, which brings its own RabbitMQ"""


def rabbitmq_server(log: Path) -> Path:
    """The path of `rabbitmq-server`; installs it where it is missing. `log` gets the package manager's output."""
    with _one_at_a_time():
        return _find() or _install(log)


def _install(log: Path) -> Path:
    if shutil.which("apt-get"):
        _install_with_apt(log)
    elif brew := shutil.which("brew"):
        say("Installing RabbitMQ with Homebrew (once) …")
        _run([brew, "install", "rabbitmq"], log)
    else:
        raise CanNotRun(WAYS_ON.format(reason="neither apt-get nor Homebrew is there"))
    found = _find()
    if found is None:
        raise CanNotRun(WAYS_ON.format(reason=f"the package brought no rabbitmq-server; see {log}"))
    return found


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let nobody install while somebody else does: stacks may start together."""
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
            raise CanNotRun(WAYS_ON.format(reason="not root, and sudo asks for a password"))
    say("Installing RabbitMQ with apt-get (once, about half a minute) …")
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    _run([*apt, "update"], log)
    with _services_stay_stopped(sudo):
        _run([*apt, "install", "-y", "--no-install-recommends", "rabbitmq-server"], log)
    if Path("/run/systemd/system").exists():
        # The private node is all that is wanted: the package's own broker shall not come up at the next boot either.
        _run([*sudo, "systemctl", "disable", "--now", "rabbitmq-server"], log)


@contextmanager
def _services_stay_stopped(sudo: Sequence[str]) -> Iterator[None]:
    """Let no package start its service while this lasts, unless the machine has such a policy already."""
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
        raise CanNotRun(WAYS_ON.format(reason=f"`{' '.join(map(str, command))}` failed; see {log}"))
