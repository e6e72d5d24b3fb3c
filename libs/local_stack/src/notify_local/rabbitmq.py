"""A private RabbitMQ node with the management UI, which runs from the machine's RabbitMQ installation."""

import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import httpx
from notify_common.contracts import topology

from notify_local.console import CannotRun
from notify_local.folder import StackFolder
from notify_local.supervisor import Program

USER = "notify"
NODE_NAME = "notify@localhost"
STOP_TIMEOUT = 30.0  # seconds
# If RabbitMQ is killed while it moves messages out of a retry queue, it moves them again only after this time. Its
# default of 3 minutes would delay those retries too much.
DEAD_LETTER_TIMEOUT = 20_000  # milliseconds
MAX_MESSAGE_SIZE = 2 * 1024 * 1024  # bytes, as in the containers


class NodePorts(NamedTuple):
    """The ports of a RabbitMQ node. The defaults are RabbitMQ's usual ports."""

    amqp: int = 5672
    management: int = 15672
    distribution: int = 25672
    epmd: int = 4370


def prepare_epmd(port: int) -> Program:
    """Return a private Erlang port mapper; a shared one could belong to another broker or outlive this node."""
    epmd = shutil.which("epmd") or shutil.which("epmd", path="/usr/lib/erlang/bin")
    if epmd is None:
        raise CannotRun("RabbitMQ is installed, but Erlang's epmd is not on the PATH.")
    # epmd can ignore SIGTERM. SIGKILL is safe, because the node has stopped by then.
    return Program("epmd", [epmd, "-address", "127.0.0.1", "-port", str(port)], stop_signal=signal.SIGKILL)


def prepare_rabbitmq(folder: StackFolder, server: Path, ports: NodePorts) -> Program:
    """Write the node's configuration and return the program that runs it."""
    data = folder.data / "rabbitmq"
    data.mkdir(mode=0o700, exist_ok=True)
    (data / "enabled_plugins").write_text("[rabbitmq_management].\n")
    # This empty file replaces the package's file, which would set other names and folders.
    (data / "rabbitmq-env.conf").write_text("")
    configuration = data / "rabbitmq.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(_configuration(folder.password(), ports))
    advanced = data / "advanced.config"
    advanced.write_text(f"[{{rabbit, [{{dead_letter_worker_publisher_confirm_timeout, {DEAD_LETTER_TIMEOUT}}}]}}].\n")
    return Program(
        name="rabbitmq",
        command=[server],
        folder=data,  # RabbitMQ writes its crash dumps to the working directory
        environment={
            "HOME": str(data),  # holds the Erlang cookie
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(advanced),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(data / "rabbitmq-env.conf"),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder.log),
            "RABBITMQ_PID_FILE": str(data / "node.pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "config"),
            "RABBITMQ_DIST_PORT": str(ports.distribution),
            "ERL_EPMD_PORT": str(ports.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": str(folder.log / "erl_crash.dump"),  # instead of the working directory
            # This makes the start script replace itself with the Erlang VM, so that signals reach the VM.
            "RUNNING_UNDER_SYSTEMD": "true",
        },
        stop_timeout=STOP_TIMEOUT,
    )


def _configuration(password: str, ports: NodePorts) -> str:
    return f"""listeners.tcp.local = 127.0.0.1:{ports.amqp}
distribution.listener.interface = 127.0.0.1
distribution.listener.port_range.min = {ports.distribution}
distribution.listener.port_range.max = {ports.distribution}
management.tcp.ip = 127.0.0.1
management.tcp.port = {ports.management}
cluster_name = notifications
max_message_size = {MAX_MESSAGE_SIZE}
default_user = {USER}
default_pass = {password}
default_user_tags.administrator = true
log.console = true
log.console.level = info
log.file = false
"""


async def rabbitmq_ready(management_port: int, password: str) -> bool:
    """Return True if the node accepts connections and its management API responds."""
    async with httpx.AsyncClient(auth=(USER, password), timeout=5, trust_env=False) as client:
        try:
            response = await client.get(f"http://127.0.0.1:{management_port}/api/health/checks/protocol-listener/amqp")
        except httpx.TransportError:
            return False
    return response.status_code == httpx.codes.OK


async def limit_archives(management_port: int, password: str) -> None:
    """Limit the archives of dead letters, as RabbitMQ's definitions do in containers."""
    policy = {
        "pattern": topology.ARCHIVE_PATTERN,
        "apply-to": "queues",
        "definition": dict(topology.ARCHIVE_LIMITS),
    }
    async with httpx.AsyncClient(auth=(USER, password), timeout=30, trust_env=False) as client:
        url = f"http://127.0.0.1:{management_port}/api/policies/%2F/{topology.ARCHIVE_POLICY}"
        (await client.put(url, json=policy)).raise_for_status()
