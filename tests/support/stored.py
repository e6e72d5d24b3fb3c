"""Deliveries in PostgreSQL, written and read without the services."""

from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from support.services import eventually

ADD = text("""
    WITH n AS (INSERT INTO notifications VALUES (:notification_id, 1, 'x', NULL, NULL, now(), 'default') RETURNING id)
    INSERT INTO deliveries SELECT CAST(:id AS uuid), id, :channel, NULL, 'pending', 1, 0, 0, now() FROM n
""")
READ = text("SELECT status, round, attempt, failures FROM deliveries WHERE id = :id")


class Stored:
    """The deliveries of a test."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, channel: Channel) -> UUID:
        """Add a pending delivery, and return its id."""
        delivery_id = new_id(now := utc_now())
        async with self._engine.begin() as connection:
            values = {"id": delivery_id, "notification_id": new_id(now), "channel": channel.value}
            await connection.execute(ADD, values)
        return delivery_id

    async def state(self, delivery_id: UUID) -> tuple[str, int, int, int]:
        """Return the delivery's status, round, attempt and failures."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(READ, {"id": delivery_id})).one()
        return (row.status, row.round, row.attempt, row.failures)

    async def becomes(self, delivery_id: UUID, status: str) -> None:
        """Wait until the delivery has this status."""

        async def reached() -> bool:
            return (await self.state(delivery_id))[0] == status

        await eventually(reached, f"the delivery is {status}")
