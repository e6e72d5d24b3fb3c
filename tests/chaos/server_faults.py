"""Faults of RabbitMQ and PostgreSQL as a whole."""

import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager, suppress

import asyncpg
from support import alarms

from chaos.process_faults import signalled
from chaos.scene import Fault, Scene

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


def memory_alarm(scene: Scene) -> AbstractAsyncContextManager[None]:
    """Keep RabbitMQ's memory alarm raised until the context ends."""
    return alarms.memory_alarm(scene.system.pid("rabbitmq"), scene.system.folder)


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
    """Run `rabbitmqctl` on the private node."""
    await alarms.rabbitmqctl(scene.system.pid("rabbitmq"), scene.system.folder, *arguments)
