"""A private RabbitMQ node of the machine's RabbitMQ, management UI included."""

import shutil
import signal
from pathlib import Path

import httpx

from notify_local.errors import CanNotRun
from notify_local.folder import StackFolder
from notify_local.supervisor import Program

USER = "notify"
NODE_NAME = "notify@localhost"
STOP_TIMEOUT = 30.0  # seconds
# After it, what a dying broker was moving out of a retry queue is moved again. RabbitMQ's default is 3 minutes.
DEAD_LETTER_TIMEOUT = 20_000  # milliseconds


def prepare_epmd(port: int) -> Program:
    """Erlang's port mapper, one of its own: the machine's may belong to another broker, or outlive this one."""
    epmd = shutil.which("epmd") or shutil.which("epmd", path="/usr/lib/erlang/bin")
    if epmd is None:
        raise CanNotRun("RabbitMQ is installed, but Erlang's epmd is not on the PATH.")
    return Program(
        name="epmd",
        command=[epmd, "-address", "127.0.0.1", "-port", str(port)],
        # It ignores SIGTERM for as long as a node is registered; by then none is.
        stop_signal=signal.SIGKILL,
    )


def prepare_rabbitmq(
    folder: StackFolder, server: Path, *, port: int, management_port: int, distribution_port: int, epmd_port: int
) -> Program:
    """Write the node's configuration and say how to run it."""
    data = folder.data / "rabbitmq"
    data.mkdir(mode=0o700, exist_ok=True)
    (data / "enabled_plugins").write_text("[rabbitmq_management].\n")
    # Shadows the package's own, which would bring other names and folders.
    (data / "rabbitmq-env.conf").write_text("")
    configuration = data / "rabbitmq.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(_configuration(folder, port, management_port, distribution_port))
    advanced = data / "advanced.config"
    advanced.write_text(f"[{{rabbit, [{{dead_letter_worker_publisher_confirm_timeout, {DEAD_LETTER_TIMEOUT}}}]}}].\n")
    return Program(
        name="rabbitmq",
        command=[server],
        environment={
            "HOME": str(data),  # its Erlang cookie lies there
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(advanced),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(data / "rabbitmq-env.conf"),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder.log),
            "RABBITMQ_PID_FILE": str(data / "node.pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "config"),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": str(folder.log / "erl_crash.dump"),  # not in the working directory
            # Its start script then becomes the Erlang VM instead of waiting for it: one process, one pid.
            "RUNNING_UNDER_SYSTEMD": "true",
        },
        stop_timeout=STOP_TIMEOUT,
    )


def _configuration(folder: StackFolder, port: int, management_port: int, distribution_port: int) -> str:
    return f"""listeners.tcp.local = 127.0.0.1:{port}
distribution.listener.interface = 127.0.0.1
distribution.listener.port_range.min = {distribution_port}
distribution.listener.port_range.max = {distribution_port}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management_port}
cluster_name = notifications
default_user = {USER}
default_pass = {folder.password()}
default_user_tags.administrator = true
log.console = true
log.console.level = info
log.file = false
"""


async def rabbitmq_ready(management_port: int, password: str) -> bool:
    """Whether the node takes connections and its management API answers."""
    async with httpx.AsyncClient(auth=(USER, password), timeout=5, trust_env=False) as client:
        try:
            answer = await client.get(f"http://127.0.0.1:{management_port}/api/health/checks/protocol-listener/amqp")
        except httpx.TransportError:
            return False
    return answer.status_code == httpx.codes.OK
