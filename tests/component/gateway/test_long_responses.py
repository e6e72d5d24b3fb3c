"""Long responses are built in short steps, so that they do not delay the requests of others."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from notify_common.contracts.ids import new_id
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.services import TIMEOUT, served_gateway

NOTIFICATIONS = 1_000
CHANNELS = ("telegram", "email", "webhook")
LONGEST_STEP = 0.3  # of the CPU time of the whole response
STORE = text("""
    WITH n AS (
        INSERT INTO notifications (id, user_id, message, created_at, tenant)
        SELECT id, 7, 'x', now(), 'default' FROM unnest(CAST(:ids AS uuid[])) AS id
    )
    INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
    SELECT id, notification_id, channel, 'sent', 1, 1, 0, now()
    FROM unnest(CAST(:delivery_ids AS uuid[]), CAST(:notification_ids AS uuid[]), CAST(:channels AS text[]))
        AS d (id, notification_id, channel)
""")


@pytest.fixture
async def stored(engine: AsyncEngine) -> None:
    now = utc_now()
    ids = [new_id(now) for _ in range(NOTIFICATIONS)]
    deliveries = [(new_id(now), of, channel) for of in ids for channel in CHANNELS]
    delivery_ids, notification_ids, channels = zip(*deliveries, strict=True)
    async with engine.begin() as connection:
        await connection.execute(
            STORE,
            {"ids": ids, "delivery_ids": delivery_ids, "notification_ids": notification_ids, "channels": channels},
        )


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Prevent pauses that depend on the objects of all other tests."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def longest_step(work: Callable[[], Awaitable[object]]) -> float:
    """Return the CPU time of the longest step of `work`, in which no other task could run, as a part of the whole."""
    with without_garbage_collection():
        await work()  # what is computed once must not count
        began = time.thread_time()
        await work()
        whole = time.thread_time() - began
        working = asyncio.ensure_future(work())
        longest, step_began = 0.0, time.thread_time()
        while not working.done():
            await asyncio.sleep(0)
            ended = time.thread_time()
            longest, step_began = max(longest, ended - step_began), ended
        await working
    return longest / whole


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("path", ["/api/notifications/7", "/api/notifications?limit=200"])
async def test_list_is_built_in_short_steps(api: httpx.AsyncClient, path: str) -> None:
    async def read() -> None:
        assert (await api.get(path)).status_code == 200

    assert await longest_step(read) < LONGEST_STEP


@pytest.mark.usefixtures("stored")
async def test_replay_is_built_in_short_steps(rabbit: RabbitSettings, postgres: PostgresSettings) -> None:
    async with served_gateway(rabbit, postgres, relaying=False) as url:

        async def read() -> None:
            reader, writer = await asyncio.open_connection(url.host, url.port)
            request = "GET /api/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1000000\r\n\r\n"
            writer.write(request.encode())
            events = 0
            async with asyncio.timeout(TIMEOUT):
                while events < NOTIFICATIONS * len(CHANNELS):
                    line = await reader.readline()
                    assert line
                    events += line == b"event: status\n"
            writer.close()

        assert await longest_step(read) < LONGEST_STEP
