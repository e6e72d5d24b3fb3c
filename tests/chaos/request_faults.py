"""Faults that requests cause: large bodies, slow reads, and retries that race with cancellations."""

import asyncio
import time
from itertools import chain
from uuid import UUID

import asyncpg
import httpx
from notify_local.console import say
from support.processes import answers

from chaos.load import PATH, Kind
from chaos.scene import Fault, Scene
from chaos.server_faults import lock_tables, memory_alarm

SLOW_READS = 10.0  # seconds; longer than a request waits for a database connection
READERS = 50  # concurrent readers of each gateway
RACED = 20  # notifications
RACES = 10  # per delivery
RACING = 20  # races at the same time
START_SPREAD = 0.005  # seconds between the starts of a retry and a cancellation, at most
FAILED_WITHIN = 30.0  # seconds
DRAINED_WITHIN = 120.0  # seconds
DUE = "SELECT count(*) FROM outbox WHERE due_at < now() - interval '5 seconds'"
# A relay that dies between the confirm and the delete leaves such a row behind.
LEFT_ROW = """
    INSERT INTO outbox (delivery_id, due_at, leased_until, round)
    SELECT id, now(), NULL, round FROM deliveries WHERE id = $1 AND status = 'failed' ON CONFLICT DO NOTHING
"""
RACED_DELIVERIES = "SELECT id, notification_id, status FROM deliveries WHERE notification_id = ANY($1)"


async def post_large_bodies(scene: Scene, _: Fault) -> None:
    """Post many e-mails of 64 KiB while RabbitMQ accepts nothing."""
    async with memory_alarm(scene):
        await scene.load.post_many(scene.large, Kind.LARGE)
        await asyncio.sleep(scene.hold)
    # Deliveries that still wait in the outbox would delay those of the next fault.
    connection = await asyncpg.connect(scene.system.addresses()["POSTGRES_URL"])
    try:
        async with asyncio.timeout(DRAINED_WITHIN):
            while await connection.fetchval(DUE):  # noqa: ASYNC110 - PostgreSQL can only be polled
                await asyncio.sleep(0.5)
    finally:
        await connection.close()


async def read_slowly(scene: Scene, fault: Fault) -> None:
    """Lock the attempts, so that reads of notifications hang; new notifications must still be accepted."""
    load = scene.load
    for gateway in load.gateways:
        # The previous fault may have killed it. Until it has started again, it refuses notifications, too.
        await answers(f"{gateway.base_url}{PATH}", httpx.codes.OK)
    fault.began = time.time()
    ids = list(load.accepted)[-1000:]
    locking = asyncio.create_task(lock_tables(scene, "attempts", SLOW_READS))
    readers = [
        asyncio.create_task(_read(gateway, ids[number::READERS], locking))
        for gateway in load.gateways
        for number in range(READERS)
    ]
    await asyncio.wait({locking})
    locking.result()
    refused = sum(at >= fault.began for at in load.refused_at)
    if refused:
        fault.complaints.append(f"{refused} notifications were refused while reads were slow")
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)


async def _read(gateway: httpx.AsyncClient, ids: list[str], locking: asyncio.Task[None]) -> None:
    number = 0
    while ids and not locking.done():
        path = f"/api/notifications/{ids[number % len(ids)]}" if number % 2 else "/api/notifications"
        try:
            await gateway.get(path)
        except httpx.TransportError:
            await asyncio.sleep(0.1)
        number += 1


async def race_retries_with_cancels(scene: Scene, fault: Fault) -> None:
    """Retry failed deliveries through one gateway while the other cancels their notifications, many times."""
    notifications = [UUID(each) for each in await scene.load.post_many(RACED, Kind.RACED)]
    async with asyncpg.create_pool(scene.system.addresses()["POSTGRES_URL"], max_size=RACING) as pool:
        deliveries = await _failed_deliveries(pool, notifications)
        if not deliveries:
            fault.complaints.append(f"raced deliveries did not fail within {FAILED_WITHIN:.0f} s")
        answers: list[int] = []
        for first in range(0, len(deliveries) * RACES, RACING):
            racing = [deliveries[number % len(deliveries)] for number in range(first, first + RACING)]
            answers += chain.from_iterable(await asyncio.gather(*(_race(scene, pool, *each) for each in racing)))
        say(f"{len(answers)} retries raced with cancellations; {answers.count(httpx.codes.ACCEPTED)} were accepted")


async def _failed_deliveries(pool: asyncpg.Pool, notifications: list[UUID]) -> list[tuple[UUID, UUID]]:
    """Return the ids of each delivery and its notification once all have failed, or nothing if that takes too long."""
    deadline = time.monotonic() + FAILED_WITHIN
    while time.monotonic() < deadline:
        rows = await pool.fetch(RACED_DELIVERIES, notifications)
        if all(row["status"] == "failed" for row in rows):
            return [(row["id"], row["notification_id"]) for row in rows]
        await asyncio.sleep(0.1)
    return []


async def _race(scene: Scene, pool: asyncpg.Pool, delivery_id: UUID, notification_id: UUID) -> list[int]:
    """Race one retry with one cancellation; return the status code of the retry, unless its gateway was down."""
    one, other = scene.rng.sample(scene.load.gateways, 2)

    async def post(gateway: httpx.AsyncClient, path: str) -> list[int]:
        await asyncio.sleep(scene.rng.uniform(0, START_SPREAD))
        try:
            return [(await gateway.post(path)).status_code]
        except httpx.TransportError:
            return []

    await pool.execute(LEFT_ROW, delivery_id)
    retried, _ = await asyncio.gather(
        post(one, f"/api/deliveries/{delivery_id}/retry"), post(other, f"/api/notifications/{notification_id}/cancel")
    )
    return retried
