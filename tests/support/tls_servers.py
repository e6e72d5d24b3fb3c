"""RabbitMQ and PostgreSQL servers that accept only TLS connections, with certificates of a test authority."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
import trustme
from notify_common.errors import StartupError
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import NOT_MIGRATED, PostgresSettings, create_engine, database_problem
from notify_local import postgres, rabbitmq
from notify_local.folder import StackFolder
from notify_local.ports import Ports
from notify_local.rabbitmq import NodePorts
from notify_local.rabbitmq_install import rabbitmq_server
from notify_local.supervisor import NOT_INHERITED, Program

from support.debian import unpacked

START_TIMEOUT = 60.0  # seconds
HOST = "localhost"
"""The only name in the servers' certificates. The servers listen on 127.0.0.1, which is not in them."""
CERTIFIED = "certified"
"""The PostgreSQL user that needs a client certificate."""

# Passwords are accepted only over TLS.
HBA = f"""hostssl all {CERTIFIED} 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
hostssl all all 127.0.0.1/32 scram-sha-256
"""
RABBITMQ = """listeners.tcp = none
listeners.ssl.local = 127.0.0.1:{ports.amqp}
ssl_options.cacertfile = {certificates.ca}
ssl_options.certfile = {certificates.cert}
ssl_options.keyfile = {certificates.key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = {required}
"""
MANAGEMENT = """management.ssl.ip = 127.0.0.1
management.ssl.port = {ports.management}
management.ssl.cacertfile = {certificates.ca}
management.ssl.certfile = {certificates.cert}
management.ssl.keyfile = {certificates.key}
"""


class Certificates:
    """The certificates of the servers and of a client, in files that `issue` replaces."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"
        self.issue()
        self._write(self.authority.issue_cert("client@localhost"), self.client_cert, self.client_key)

    def issue(self, authority: trustme.CA | None = None, *, not_after: datetime | None = None) -> None:
        """Replace the servers' certificate, and add its authority to those that are trusted."""
        authority = authority or self.authority
        authorities = self.authority.cert_pem.bytes()
        if authority is not self.authority:
            authorities += authority.cert_pem.bytes()
        self.ca.write_bytes(authorities)
        self._write(authority.issue_cert(HOST, not_after=not_after), self.cert, self.key)

    @staticmethod
    def _write(issued: trustme.LeafCert, cert: Path, key: Path) -> None:
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.touch(mode=0o600)
        key.write_bytes(issued.private_key_pem.bytes())


@dataclass(frozen=True)
class TlsRabbit:
    """A RabbitMQ node. Its AMQP and management ports accept only TLS."""

    settings: RabbitSettings
    management_url: str
    certificates: Certificates
    program: Program

    def management(self) -> httpx.Client:
        user, password = self.settings.rabbitmq_user, self.settings.rabbitmq_password.get_secret_value()
        context = ssl.create_default_context(cafile=self.certificates.ca)
        return httpx.Client(
            base_url=self.management_url, auth=(user, password), verify=context, timeout=30, trust_env=False
        )

    def reload(self) -> None:
        """Make the node read the replaced files at once; it would do so within two minutes."""
        self._control("eval", "ssl:clear_pem_cache().")

    def connections(self) -> list[str]:
        """Return the names of all connections, all of which must use TLS."""
        listed = json.loads(self._control("-q", "list_connections", "ssl", "client_properties", "--formatter=json"))
        assert all(connection["ssl"] for connection in listed)
        properties = [{name: value for name, _, value in each["client_properties"]} for each in listed]
        return [each.get("connection_name", "-") for each in properties]

    def disconnect_all(self) -> None:
        """Close all connections."""
        self._control("close_all_connections", "test")

    def _control(self, *arguments: str) -> str:
        control = Path(self.program.command[0]).with_name("rabbitmqctl")
        done = subprocess.run(  # noqa: S603 - ours
            [str(control), "-n", rabbitmq.NODE_NAME, *arguments],
            env=_environment(self.program), check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout


@dataclass(frozen=True)
class TlsPostgres:
    """A PostgreSQL server that accepts only TLS connections."""

    settings: PostgresSettings
    process: subprocess.Popen[bytes]

    def reload(self) -> None:
        """Make the server read the replaced files."""
        self.process.send_signal(signal.SIGHUP)


@contextmanager
def running_rabbitmq(path: Path, certificates: Certificates, *, client_certificates: bool) -> Iterator[TlsRabbit]:
    """Run a node; with `client_certificates`, AMQP clients need one."""
    folder, allocated = StackFolder(path), Ports()
    ports = NodePorts(*map(allocated.free, NodePorts()))
    program = rabbitmq.prepare_rabbitmq(folder, rabbitmq_server(folder.log / "install.log"), ports)
    configuration = folder.data / "rabbitmq" / "rabbitmq.conf"
    kept = [
        line
        for line in configuration.read_text().splitlines(keepends=True)
        if not line.startswith(("listeners.", "management."))
    ]
    required = str(client_certificates).lower()
    added = [RABBITMQ.format(ports=ports, certificates=certificates, required=required)]
    added.append(MANAGEMENT.format(ports=ports, certificates=certificates))
    configuration.write_text("".join(added + kept))
    settings = {
        "rabbitmq_host": HOST,
        "rabbitmq_port": ports.amqp,
        "rabbitmq_user": rabbitmq.USER,
        "rabbitmq_password": folder.password(),
        "rabbitmq_tls": True,
        "rabbitmq_ca_file": certificates.ca,
    }
    url = f"https://{HOST}:{ports.management}"
    rabbit = TlsRabbit(RabbitSettings.model_validate(settings), url, certificates, program)

    def ready() -> bool:
        try:
            with rabbit.management() as management:
                return management.get("/api/health/checks/protocol-listener/amqp%2Fssl").is_success
        except httpx.TransportError:
            return False

    with running_program(rabbitmq.prepare_epmd(ports.epmd), folder), running_program(program, folder) as process:
        await_server(ready, process, folder.log / "rabbitmq.log")
        yield rabbit


@contextmanager
def running_postgres(path: Path, certificates: Certificates) -> Iterator[TlsPostgres]:
    """Run a server with an empty database; the user `CERTIFIED` needs a client certificate.

    It is Debian's PostgreSQL, because the one that the local stack runs was built without TLS.
    """
    binary, environment = _debians_postgres(path / "packages")
    folder = StackFolder(path)
    prefix = postgres.AS_NOBODY_IN_NAMESPACE if os.geteuid() == 0 else ()
    password, port = folder.password(), Ports().free(5432)
    cluster, hba = folder.data / "postgres", path / "hba.conf"
    hba.write_text(HBA)
    initdb = [*prefix, binary.with_name("initdb"), "-D", cluster, "--username", postgres.USER, "--locale=C",
              "--pwfile", folder.data / "password", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]  # fmt: skip
    done = subprocess.run(initdb, env={**os.environ, **environment}, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    assert done.returncode == 0, done.stderr
    options = {"ssl": "on", "ssl_ca_file": certificates.ca, "ssl_cert_file": certificates.cert,
               "ssl_key_file": certificates.key, "hba_file": hba, "port": port, "fsync": "off",
               "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}  # fmt: skip
    command = [*prefix, binary, "-D", cluster, *(f"--{name}={value}" for name, value in options.items())]
    settings = {
        "postgres_host": HOST,
        "postgres_port": port,
        "postgres_user": postgres.USER,
        "postgres_password": password,
        "postgres_database": "postgres",
        "postgres_sslmode": "verify-full",
        "postgres_ca_file": certificates.ca,
    }
    tls = PostgresSettings.model_validate(settings)
    with running_program(Program("postgres", command, environment, stop_signal=signal.SIGINT), folder) as process:
        await_server(lambda: asyncio.run(_accepts(tls)), process, folder.log / "postgres.log")
        yield TlsPostgres(tls, process)


def _debians_postgres(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return PostgreSQL's program, which is unpacked below `folder` if it is not installed, and its environment."""
    binaries = "usr/lib/postgresql/*/bin/postgres"
    if installed := sorted(Path("/").glob(binaries)):
        return installed[-1], {}
    root = unpacked("postgresql", folder=folder, with_libraries=True)
    libraries = {str(library.parent) for library in root.rglob("*.so.*")}
    return next(root.glob(binaries)), {"LD_LIBRARY_PATH": ":".join(libraries)}


async def _accepts(settings: PostgresSettings) -> bool:
    engine = create_engine(settings, pool_size=1)
    try:
        with suppress(StartupError):
            return await database_problem(engine) == NOT_MIGRATED
    finally:
        await engine.dispose()
    return False


def _environment(program: Program) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    return {**inherited, **program.environment}


@contextmanager
def running_program(program: Program, folder: StackFolder) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, and stop it when the context ends; its log is in the folder."""
    with (folder.log / f"{program.name}.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - ours
            list(map(str, program.command)), env=_environment(program), cwd=program.folder, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.send_signal(program.stop_signal)  # no error if the test has killed it
            process.wait(program.stop_timeout)


def await_server(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server is ready; fail with its log if it ends before."""
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
