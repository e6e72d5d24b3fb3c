"""A member of etcd, in which Patroni keeps who is the primary."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from support.cluster.process import Process
from support.debian import unpack


def etcd_program(folder: Path) -> Path:
    """Return the path of etcd. Unless it is installed, unpack Debian's package; raise `CannotRun` if that fails."""
    if installed := shutil.which("etcd"):
        return Path(installed)
    return unpack("etcd-server", folder=folder / "etcd-package", with_libraries=False) / "usr/bin/etcd"


def etcd_process(program: Path, machine: Path, name: str, port: int, peers: Mapping[str, int]) -> Process:
    """Return a member; `peers` are the ports of all members by name."""
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers[name]}"
    command: list[str | Path] = [
        program, "--name", name, "--data-dir", machine / "etcd",
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", ",".join(f"{other}=http://127.0.0.1:{each}" for other, each in peers.items()),
        "--log-level", "warn",
    ]  # fmt: skip
    return Process(name, command, {}, machine / "etcd.log", machine)
