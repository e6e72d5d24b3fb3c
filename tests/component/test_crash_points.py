"""Kill a process at an exact point; the remaining processes must complete its delivery."""

from contextlib import AsyncExitStack

import httpx
import pytest
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.crashes import POINTS
from support.fakes import FakeProvider
from support.processes import crash
from support.services import eventually, running_gateway, running_sender, running_status_writer

EXPIRE_LEASES = text("UPDATE outbox SET leased_until = now() - interval '1 second'")
STATE = text("""
    SELECT d.status, array_agg(a.outcome ORDER BY a.attempt) AS outcomes, (SELECT count(*) FROM outbox) AS outbox
    FROM deliveries d LEFT JOIN attempts a ON a.delivery_id = d.id GROUP BY d.id
""")


@pytest.mark.parametrize("point", POINTS)
async def test_delivery_completes_after_a_crash(
    point: str, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    provider = FakeProvider()
    async with AsyncExitStack() as stack:
        if "hand-over" in point or "publish" in point or "outbox" in point:
            await crash(point, rabbit, postgres)
            async with engine.begin() as connection:
                await connection.execute(EXPIRE_LEASES)  # as if the leases had expired
            await stack.enter_async_context(running_gateway(rabbit, postgres))
        else:
            gateway = await stack.enter_async_context(running_gateway(rabbit, postgres))
            await post(gateway)
        if point == "between SQL commit and ack":
            async with running_sender(rabbit, FakeProvider()):
                await crash(point, rabbit, postgres)
        elif "provider" in point or point == "between result and ack":
            await crash(point, rabbit, postgres)
        await stack.enter_async_context(running_sender(rabbit, provider))
        await stack.enter_async_context(running_status_writer(rabbit, postgres))

        async def is_complete() -> bool:
            async with engine.connect() as connection:
                return [tuple(row) for row in await connection.execute(STATE)] == [("sent", ["sent"], 0)]

        await eventually(is_complete, "the delivery is sent with one attempt, and the outbox is empty")
    # The sender that starts after the crash calls the provider unless an earlier sender has acked the request. After a
    # crash between result and ack this is a second call, because the new process does not know about the first.
    assert len(provider.calls) == (point != "between SQL commit and ack")


async def post(gateway: httpx.AsyncClient) -> None:
    response = await gateway.post("/api/notifications", json={"user_id": 1, "message": "x", "type": "telegram"})
    assert response.status_code == 201
