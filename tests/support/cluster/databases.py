"""Three PostgreSQL members under Patroni, each on a machine of its own with a member of etcd.

Patroni replicates each commit to at least one other member before the client gets its answer. Without another member,
commits wait: `synchronous_mode_strict`.
"""

import asyncio
import json
import shutil
import ssl
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
from notify_local.ports import Ports
from notify_local.postgres import DATABASE, USER, binary, unprivileged_prefix

from support.cluster.etcd import etcd_process, etcd_program
from support.cluster.process import Process, freeze, kill, thaw

NUMBERS = (1, 2, 3)
FIRST_PORT = 30_100
START_TIMEOUT = 90.0  # seconds
POLL_INTERVAL = 0.2  # seconds
WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # by default, each client would load all authorities
LOCK_TTL = 20  # seconds; the shortest that Patroni allows
QUORUM = {"synchronous_mode": "quorum", "synchronous_mode_strict": True}
ASYNCHRONOUS: dict[str, Any] = {"synchronous_mode": False}


@dataclass(frozen=True)
class MemberPorts:
    """The ports of a machine."""

    postgres: int
    patroni: int
    etcd: int
    peers: int


@dataclass
class Member:
    """A machine: PostgreSQL, Patroni, and a member of etcd."""

    number: int
    ports: MemberPorts
    etcd: Process
    patroni: Process
    data: Path

    @property
    def name(self) -> str:
        return f"postgres-{self.number}"

    def postgres(self) -> list[psutil.Process]:
        """Return PostgreSQL's processes. They are no children of Patroni, which may die before them."""
        with suppress(OSError, IndexError, ValueError, psutil.NoSuchProcess):
            postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            # The file outlives a killed server, whose process id another process may have got since.
            if postmaster.name() == "postgres":
                return [postmaster, *postmaster.children(recursive=True)]
        return []

    def processes(self) -> list[psutil.Process]:
        return [*self.patroni.tree(), *self.postgres(), *self.etcd.tree()]

    def start(self) -> None:
        self.etcd.start()
        self.patroni.start()

    def kill(self) -> None:
        kill(self.processes())
        self.etcd.reap()
        self.patroni.reap()

    def stop(self) -> None:
        """Stop the machine in order, as for maintenance."""
        self.patroni.stop()
        self.etcd.stop()

    def kill_postgres(self) -> None:
        """Kill only PostgreSQL: Patroni notices, and hands over to another member."""
        kill(self.postgres())

    def freeze(self) -> None:
        freeze(self.processes())

    def thaw(self) -> None:
        thaw(self.processes())

    def wipe(self) -> None:
        """Delete PostgreSQL's data, as if its disk had been replaced."""
        shutil.rmtree(self.data)


@dataclass
class DatabaseCluster:
    """The members, of which one is the primary."""

    members: Sequence[Member]
    password: str
    user: str = USER
    name: str = DATABASE

    def hosts(self) -> str:
        """Return the value of `POSTGRES_HOSTS`."""
        return ",".join(f"127.0.0.1:{member.ports.postgres}" for member in self.members)

    def url(self) -> str:
        """Return the URL of the primary, whichever it is."""
        return f"postgresql://{USER}:{self.password}@{self.hosts()}/{DATABASE}?target_session_attrs=read-write"

    async def primary(self) -> Member:
        """Wait for a primary, and return it."""
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                roles = await asyncio.gather(*(_answers(member, "/primary") for member in self.members))
                found = [member for member, primary in zip(self.members, roles, strict=True) if primary]
                if len(found) == 1:
                    return found[0]
                await asyncio.sleep(POLL_INTERVAL)

    async def complete(self) -> None:
        """Wait until all members run, and commits are replicated if they should be."""
        async with asyncio.timeout(START_TIMEOUT):
            while not await self._is_complete():  # noqa: ASYNC110 - servers can only be polled
                await asyncio.sleep(POLL_INTERVAL)

    async def _is_complete(self) -> bool:
        primary = await self.primary()
        return all(
            await asyncio.gather(*(_answers(each, "/replica?lag=1MB") for each in self.members if each is not primary))
        )

    async def create_database(self) -> None:
        """Create the services' database."""
        connection = await asyncpg.connect(self.url().replace(f"/{DATABASE}?", "/postgres?"))
        try:
            await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()


def _await_primary(member: Member) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    with httpx.Client(timeout=2, trust_env=False) as client:
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if client.get(f"http://127.0.0.1:{member.ports.patroni}/primary").is_success:
                    return
            time.sleep(POLL_INTERVAL)
    raise TimeoutError(f"{member.name} did not start: see {member.patroni.log}")


async def _answers(member: Member, path: str) -> bool:
    async with httpx.AsyncClient(timeout=2, trust_env=False, verify=WITHOUT_TLS) as client:
        try:
            return (await client.get(f"http://127.0.0.1:{member.ports.patroni}{path}")).is_success
        except httpx.TransportError:
            return False


@contextmanager
def running_databases(
    folder: Path, password: str, replication: Mapping[str, Any] = QUORUM
) -> Iterator[DatabaseCluster]:
    """Run three members until the context ends."""
    program = etcd_program(folder)
    free = Ports()
    numbers = iter(range(FIRST_PORT, FIRST_PORT + 4 * len(NUMBERS)))
    ports = [MemberPorts(*(free.free(next(numbers)) for _ in range(4))) for _ in NUMBERS]
    peers = {f"etcd-{number}": each.peers for number, each in zip(NUMBERS, ports, strict=True)}
    clients = [f"127.0.0.1:{each.etcd}" for each in ports]
    members = []
    for number, own in zip(NUMBERS, ports, strict=True):
        machine = folder / f"postgres-{number}"
        machine.mkdir(mode=0o700)
        etcd = etcd_process(program, machine, f"etcd-{number}", own.etcd, peers)
        configuration = machine / "patroni.json"
        configuration.touch(mode=0o600)
        configuration.write_text(json.dumps(_configuration(machine, number, own, clients, password, replication)))
        command: list[str | Path] = [sys.executable, "-m", "patroni", configuration]
        environment = {"HOME": str(machine), "LANG": "C.UTF-8"}
        patroni = Process(
            f"patroni-{number}", command, environment, machine / "patroni.log", machine, unprivileged_prefix()
        )
        members.append(Member(number, own, etcd, patroni, machine / "data"))
    try:
        # Members that start before there is a primary look for one only every ten seconds.
        first, *others = members
        for member in members:
            member.etcd.start()
        first.patroni.start()
        _await_primary(first)
        for member in others:
            member.patroni.start()
        yield DatabaseCluster(members, password)
    finally:
        for member in members:
            member.kill()


def _configuration(
    machine: Path, number: int, ports: MemberPorts, etcd: list[str], password: str, replication: Mapping[str, Any]
) -> dict[str, Any]:
    """Return Patroni's configuration. It reads YAML, of which JSON is a part."""
    login = "host all all 127.0.0.1/32 scram-sha-256"
    return {
        "scope": "notifications",
        "name": f"postgres-{number}",
        "restapi": {"listen": f"127.0.0.1:{ports.patroni}", "connect_address": f"127.0.0.1:{ports.patroni}"},
        "etcd3": {"hosts": etcd},
        "bootstrap": {
            "dcs": {
                "ttl": LOCK_TTL,
                "loop_wait": 1,
                "retry_timeout": 5,
                # A crashed primary does not get time to recover: another member takes over at once.
                "primary_start_timeout": 0,
                "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 200}},
                **replication,
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{ports.postgres}",
            "connect_address": f"127.0.0.1:{ports.postgres}",
            "data_dir": str(machine / "data"),
            "bin_dir": str(binary("postgres").parent),
            "pgpass": str(machine / "pgpass"),
            "authentication": {
                "superuser": {"username": USER, "password": password},
                "replication": {"username": "replicator", "password": password},
                "rewind": {"username": USER, "password": password},
            },
            "parameters": {"unix_socket_directories": ""},
            # A copy of the primary's data would begin only after its next checkpoint, which takes minutes.
            "basebackup": [{"checkpoint": "fast"}],
            "pg_hba": [login, login.replace("all all", "replication replicator")],
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
        },
    }
