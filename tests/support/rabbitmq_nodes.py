"""Private RabbitMQ nodes that tests may kill, and addresses that accept connections and stay silent or close them."""

import asyncio
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.hosts import Hosts
from notify_local import rabbitmq
from notify_local.folder import StackFolder
from notify_local.ports import Ports
from notify_local.rabbitmq import NodePorts
from notify_local.rabbitmq_install import rabbitmq_server

from support.tls_servers import await_server, running_program

PASSWORD = "the same for all nodes"


class Node:
    """A RabbitMQ node of its own: it is in no cluster."""

    def __init__(self, ports: NodePorts, process: subprocess.Popen[bytes]) -> None:
        self.port = ports.amqp
        self.management_port = ports.management
        self.process = process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the node accept connections, because the kernel does, and do nothing else."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def running_node(path: Path, allocated: Ports) -> Iterator[Node]:
    """Run a node whose user and password are those of `node_settings`."""
    folder = StackFolder(path)
    (folder.data / "password").write_text(PASSWORD)
    ports = NodePorts(*map(allocated.free, NodePorts()))
    program = rabbitmq.prepare_rabbitmq(folder, rabbitmq_server(folder.log / "install.log"), ports)
    with (
        running_program(rabbitmq.prepare_epmd(ports.epmd), folder),
        running_program(program, folder) as process,
    ):
        url = f"http://127.0.0.1:{ports.management}/api/health/checks/protocol-listener/amqp"
        await_server(lambda: _responds(url), process, folder.log / "rabbitmq.log")
        yield Node(ports, process)
        process.kill()  # a node takes long to stop


def _responds(url: str) -> bool:
    try:
        return httpx.get(url, auth=(rabbitmq.USER, PASSWORD), timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def node_settings(*nodes: str, **change: object) -> RabbitSettings:
    """Return the settings for these nodes, of which the first is tried first."""
    settings = RabbitSettings.model_validate(
        {
            "rabbitmq_hosts": ",".join(nodes),
            "rabbitmq_user": rabbitmq.USER,
            "rabbitmq_password": PASSWORD,
            **change,
        }
    )
    try_first(settings.rabbitmq_nodes(), nodes[0])
    return settings


def try_first(hosts: Hosts, address: str) -> None:
    """Make all connections of this process try this address first."""
    while str(hosts.first) != address:
        hosts.failed(hosts.first)


@asynccontextmanager
async def silent_address(tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Yield an address that accepts connections, with `tls` also the handshake, and neither sends nor reads more."""
    writers: list[asyncio.StreamWriter] = []

    def keep(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if tls is not None:
            writer.transport.pause_reading()  # type: ignore[attr-defined] # otherwise asyncio would close TLS properly

    server = await asyncio.start_server(keep, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def closing_address() -> AsyncIterator[tuple[str, asyncio.Semaphore]]:
    """Yield an address that closes each connection at once, as a proxy does, and a semaphore that counts them."""
    closed, loop = asyncio.Semaphore(0), asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_each() -> None:
            # The loop of the test would accept a connection only after the client has begun to read.
            with suppress(OSError):
                while True:
                    server.accept()[0].close()
                    loop.call_soon_threadsafe(closed.release)

        closing = loop.run_in_executor(None, close_each)
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", closed
        finally:
            server.shutdown(socket.SHUT_RDWR)
            await closing
