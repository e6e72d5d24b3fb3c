"""Raise RabbitMQ's memory alarm, during which it reads nothing from connections that publish."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from notify_local.rabbitmq_install import rabbitmq_server

from support.servers import Servers

LOW_WATERMARK, NORMAL_WATERMARK = "0.00001", "0.6"  # fractions of the machine's memory


@asynccontextmanager
async def memory_alarm(servers: Servers, folder: Path) -> AsyncIterator[None]:
    """Keep the memory alarm of the tests' private node on until the context ends."""
    await _set_watermark(servers, folder, LOW_WATERMARK)
    try:
        yield
    finally:
        await _set_watermark(servers, folder, NORMAL_WATERMARK)


async def _set_watermark(servers: Servers, folder: Path, watermark: str) -> None:
    listening = {tuple(each.laddr)[1]: each.pid for each in psutil.net_connections("tcp") if each.status == "LISTEN"}
    pid = listening[servers.rabbit.rabbitmq_port]
    environment = psutil.Process(pid).environ()
    environment.pop("RUNNING_UNDER_SYSTEMD", None)
    command = rabbitmq_server(folder / "install.log").with_name("rabbitmqctl")
    process = await asyncio.create_subprocess_exec(
        command, "--node", environment["RABBITMQ_NODENAME"], "set_vm_memory_high_watermark", watermark,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
