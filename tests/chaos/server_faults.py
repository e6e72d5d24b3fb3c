"""Faults of RabbitMQ and PostgreSQL as a whole."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import psutil
from notify_local.rabbitmq_install import rabbitmq_server

from chaos.process_faults import signalled
from chaos.scene import Fault, Scene

LOW_WATERMARK, NORMAL_WATERMARK = "0.00001", "0.6"  # fractions of the machine's memory
ALL_TABLES = "notifications, deliveries, attempts, outbox"


async def stop_postgres(scene: Scene, _: Fault) -> None:
    """Stop PostgreSQL in immediate mode; its supervisor restarts it."""
    os.kill(scene.system.pid("postgres"), signal.SIGQUIT)


async def kill_both(scene: Scene, fault: Fault) -> None:
    """Kill RabbitMQ, and stop PostgreSQL in immediate mode."""
    fault.killed |= signalled(scene.system, ["rabbitmq"], signal.SIGKILL)
    await stop_postgres(scene, fault)


async def close_connections(scene: Scene, _: Fault) -> None:
    """Close all connections to RabbitMQ."""
    async with scene.management() as management:
        for connection in (await management.get("/api/connections")).raise_for_status().json():
            await management.delete(f"/api/connections/{connection['name']}")


async def raise_memory_alarm(scene: Scene, _: Fault) -> None:
    """Raise RabbitMQ's memory alarm for a while."""
    async with memory_alarm(scene):
        await asyncio.sleep(scene.hold)


@asynccontextmanager
async def memory_alarm(scene: Scene) -> AsyncIterator[None]:
    """Keep RabbitMQ's memory alarm raised, so that it accepts nothing."""
    await rabbitmqctl(scene, "set_vm_memory_high_watermark", LOW_WATERMARK)
    try:
        yield
    finally:
        await rabbitmqctl(scene, "set_vm_memory_high_watermark", NORMAL_WATERMARK)


async def lock_all_tables(scene: Scene, _: Fault) -> None:
    """Lock all tables against readers and writers."""
    await lock_tables(scene, ALL_TABLES, scene.hold)


async def lock_tables(scene: Scene, tables: str, seconds: float) -> None:
    """Lock tables against readers and writers for `seconds`."""
    connection = await asyncpg.connect(scene.system.addresses()["POSTGRES_URL"])
    try:
        held = False
        while not held:
            # PostgreSQL locks the tables one by one; if that deadlocks with a service, it may cancel this lock.
            with suppress(asyncpg.DeadlockDetectedError):
                async with connection.transaction():
                    await connection.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
                    held = True
                    await asyncio.sleep(seconds)
    finally:
        await connection.close()


async def rabbitmqctl(scene: Scene, *arguments: str) -> None:
    """Run `rabbitmqctl` on the private node, with the node's environment variables."""
    environment = psutil.Process(scene.system.pid("rabbitmq")).environ()
    environment.pop("RUNNING_UNDER_SYSTEMD", None)
    command = rabbitmq_server(scene.system.folder / "install.log").with_name("rabbitmqctl")
    process = await asyncio.create_subprocess_exec(
        command, "--node", environment["RABBITMQ_NODENAME"], *arguments,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
