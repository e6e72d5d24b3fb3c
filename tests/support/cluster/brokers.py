"""Three RabbitMQ nodes with the settings in `deploy/rabbitmq`, on links that a test can cut."""

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from notify_local.console import say
from notify_local.ports import Ports
from notify_local.rabbitmq import NodePorts, prepare_epmd
from notify_local.rabbitmq_install import rabbitmq_server

from support.cluster.links import Link, Links
from support.cluster.process import Process, freeze, kill, thaw
from support.servers import PROJECT

DEPLOYED = PROJECT / "deploy/rabbitmq"
USER = "admin"
NUMBERS = (1, 2, 3)
START_TIMEOUT = 180.0  # seconds
COMMAND_TIMEOUT = 120.0  # seconds; a command for a queue that commits nothing would never end
PROBE_INTERVAL = 30.0  # seconds
GAVE_UP = "case rabbit:is_running() orelse rabbit:is_booting() of true -> well; false -> stopped end."
POLL_INTERVAL = 0.5  # seconds
WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # by default, each client would load all authorities
FIRST_PORT = 30_000
NODES = re.compile(r"^cluster_formation[.]classic_config[.]nodes[.](\d) = (\S+)$", re.MULTILINE)


@dataclass
class Broker:
    """A node: `number` is its place in `deploy/rabbitmq/cluster.conf`, which has its name."""

    number: int
    node: str
    ports: NodePorts
    process: Process
    mapper: Process
    server: Path
    data: Path

    @property
    def name(self) -> str:
        return self.process.name

    def processes(self) -> list[psutil.Process]:
        return self.process.tree()

    def start(self) -> None:
        self.mapper.start()
        self.process.start()

    def kill(self) -> None:
        kill(self.processes())
        self.process.reap()

    def freeze(self) -> None:
        freeze(self.processes())

    def thaw(self) -> None:
        thaw(self.processes())

    def wipe(self) -> None:
        """Delete the node's data, as if it came back with an empty disk."""
        shutil.rmtree(self.data / "mnesia")

    def gave_up(self) -> bool:
        """Return whether RabbitMQ is stopped although its process runs; a liveness probe would restart it.

        RabbitMQ 3.10 stops itself without a majority, and tries to start only once when the majority is back. That can
        fail, for example because the feature flags of a peer that is still starting are unknown.
        """
        return bool(self.process.tree()) and "stopped" in self.control("eval", GAVE_UP, check=False)

    def control(self, *arguments: str, program: str = "rabbitmqctl", check: bool = True) -> str:
        """Run one of RabbitMQ's commands on this node, and return its output; it may fail if not `check`."""
        environment = {name: text for name, text in self.process.environment.items() if "SYSTEMD" not in name}
        done = subprocess.run(  # noqa: S603 - ours
            [self.server.with_name(program), "--node", self.node, *arguments],
            env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=False,
            timeout=COMMAND_TIMEOUT,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout


@dataclass
class BrokerCluster:
    """The nodes, and the network between them."""

    nodes: Sequence[Broker]
    password: str
    links: Links

    def management_url(self, node: Broker) -> str:
        return f"http://{USER}:{self.password}@127.0.0.1:{node.ports.management}"

    def hosts(self) -> str:
        """Return the value of `RABBITMQ_HOSTS`."""
        return ",".join(f"127.0.0.1:{node.ports.amqp}" for node in self.nodes)

    async def queues(self, node: Broker) -> list[dict[str, Any]]:
        """Return the quorum queues with their members, as one node knows them."""
        url = self.management_url(node)
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False, verify=WITHOUT_TLS) as management:
            queues = (await management.get("/api/queues")).raise_for_status().json()
        return [queue for queue in queues if queue.get("type") == "quorum"]

    def shrink(self) -> None:
        """Leave the queues only their members on the first node."""
        first, *others = self.nodes
        for node in others:
            first.control("shrink", node.node, program="rabbitmq-queues")

    async def joined(self, node: Broker) -> None:
        """Wait until a node runs."""
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                with suppress(httpx.HTTPError):
                    await self.queues(node)
                    return
                await asyncio.sleep(POLL_INTERVAL)

    async def complete(self) -> None:
        """Wait until every node runs and is a member of every queue."""
        await asyncio.gather(*map(self._complete, self.nodes))

    async def _complete(self, node: Broker) -> None:
        probed = time.monotonic()
        async with asyncio.timeout(START_TIMEOUT):
            while not await self._is_complete(node):
                await asyncio.sleep(POLL_INTERVAL)
                if time.monotonic() - probed > PROBE_INTERVAL:
                    if await asyncio.to_thread(node.gave_up):
                        say(f"{node.name} gave up starting again; restarting it")
                        node.kill()
                        node.start()
                    probed = time.monotonic()

    async def _is_complete(self, node: Broker) -> bool:
        try:
            queues = await self.queues(node)
        except httpx.HTTPError:
            return False
        everyone = {each.node for each in self.nodes}
        return bool(queues) and all(set(queue.get("online", [])) == everyone for queue in queues)


@contextmanager
def running_brokers(folder: Path, password: str) -> Iterator[BrokerCluster]:
    """Run three nodes until the context ends."""
    server = rabbitmq_server(folder / "install.log")
    names = dict(NODES.findall((DEPLOYED / "cluster.conf").read_text()))
    free = Ports()
    link_port, *others = (free.free(FIRST_PORT + number) for number in range(1 + 4 * len(NUMBERS)))
    nodes = []
    for number in NUMBERS:
        ports, others = NodePorts(*others[:4]), others[4:]
        nodes.append(_prepare(folder / f"rabbitmq-{number}", number, names, ports, server, password))
    links = Links(link_port)
    links.open({node.number: node.ports for node in nodes})
    try:
        for node in nodes:
            node.start()
        yield BrokerCluster(nodes, password, links)
    finally:
        for node in nodes:
            node.kill()
            node.mapper.stop(signal.SIGKILL)
        links.close()


def _prepare(
    data: Path, number: int, names: Mapping[str, str], ports: NodePorts, server: Path, password: str
) -> Broker:
    data.mkdir(mode=0o700)
    node = names[str(number)]
    (data / "enabled_plugins").write_text("[rabbitmq_management].\n")
    (data / "rabbitmq-env.conf").write_text("")
    (data / "hosts").write_text(_hosts(number, names))
    (data / "definitions.json").write_text(_definitions(password))
    cookie = data / ".erlang.cookie"
    cookie.touch(mode=0o600)
    cookie.write_text(password)
    cookie.chmod(0o400)
    (data / "rabbitmq.conf").write_text(_configuration(data, ports) + (DEPLOYED / "cluster.conf").read_text())
    environment = {
        "HOME": str(data),
        "LANG": "C.UTF-8",
        "ERL_INETRC": str(data / "hosts"),
        "ERL_EPMD_PORT": str(ports.epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP": str(data / "erl_crash.dump"),
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(DEPLOYED / "cluster_advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(data / "rabbitmq-env.conf"),
        "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
        "RABBITMQ_LOG_BASE": str(data),
        "RABBITMQ_PID_FILE": str(data / "node.pid"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "config"),
        "RABBITMQ_DIST_PORT": str(ports.distribution),
        "RUNNING_UNDER_SYSTEMD": "true",
    }
    process = Process(f"rabbitmq-{number}", [server], environment, data / "node.log", data)
    mapper = Process(f"epmd-{number}", prepare_epmd(ports.epmd).command, {}, data / "epmd.log", data)
    return Broker(number, node, ports, process, mapper, server, data)


def _hosts(number: int, names: Mapping[str, str]) -> str:
    """Return Erlang's list of hosts for a node, in which all others have the addresses of its links."""
    lines = ["{lookup, [file, native]}."]
    for other, node in names.items():
        address = "127.0.0.1" if int(other) == number else Link(number, int(other)).address
        lines.append(f'{{host, {{{address.replace(".", ",")}}}, ["{node.partition("@")[2]}"]}}.')
    return "\n".join(lines) + "\n"


def _definitions(password: str) -> str:
    """Return the deployed definitions, in which all users have the same password."""
    definitions = (DEPLOYED / "definitions.json").read_text()
    return re.sub(r"\$\{RABBITMQ_\w+_PASSWORD\}", json.dumps(password)[1:-1], definitions)


def _configuration(data: Path, ports: NodePorts) -> str:
    return f"""listeners.tcp.local = 127.0.0.1:{ports.amqp}
distribution.listener.interface = 127.0.0.1
distribution.listener.port_range.min = {ports.distribution}
distribution.listener.port_range.max = {ports.distribution}
management.tcp.ip = 127.0.0.1
management.tcp.port = {ports.management}
definitions.import_backend = local_filesystem
definitions.local.path = {data}/definitions.json
log.console = true
log.console.level = info
log.file = false
"""
