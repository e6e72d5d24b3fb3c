"""Make RabbitMQ accept nothing: from any connection that publishes, by its memory alarm, or for one quorum queue."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from notify_local.rabbitmq_install import rabbitmq_server

LOW_WATERMARK, NORMAL_WATERMARK = "0.00001", "0.6"  # fractions of the machine's memory


@asynccontextmanager
async def memory_alarm(pid: int, folder: Path) -> AsyncIterator[None]:
    """Keep the memory alarm of the private node with this process id raised until the context ends."""
    await rabbitmqctl(pid, folder, "set_vm_memory_high_watermark", LOW_WATERMARK)
    try:
        yield
    finally:
        await rabbitmqctl(pid, folder, "set_vm_memory_high_watermark", NORMAL_WATERMARK)


@asynccontextmanager
async def suspended_queue(pid: int, folder: Path, vhost: str, queue: str) -> AsyncIterator[None]:
    """Suspend the only member of a quorum queue until the context ends, so that the queue does not commit anything."""
    member = f"whereis('{vhost}_{queue}')"
    await rabbitmqctl(pid, folder, "eval", f"ok = sys:suspend({member}).")
    try:
        yield
    finally:
        await rabbitmqctl(pid, folder, "eval", f"ok = sys:resume({member}).")


async def rabbitmqctl(pid: int, folder: Path, *arguments: str) -> None:
    """Run `rabbitmqctl` with the environment variables of the private node; `folder` gets an installation log."""
    environment = psutil.Process(pid).environ()
    environment.pop("RUNNING_UNDER_SYSTEMD", None)
    command = rabbitmq_server(folder / "install.log").with_name("rabbitmqctl")
    process = await asyncio.create_subprocess_exec(
        command, "--node", environment["RABBITMQ_NODENAME"], *arguments,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


def listening_process(port: int) -> int:
    """Return the id of the process that listens on a TCP port."""
    listening = {tuple(each.laddr)[1]: each.pid for each in psutil.net_connections("tcp") if each.status == "LISTEN"}
    pid = listening[port]
    assert pid is not None
    return pid
