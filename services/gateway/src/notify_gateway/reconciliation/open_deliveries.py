"""Find open deliveries without an outbox row in PostgreSQL, and put them back into the outbox."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from notify_common.contracts.channels import KNOWN_CHANNELS
from notify_database.engine import execute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.reconciliation.broker_contents import DeliveryRound

DELIVERIES_PER_STATEMENT = 20_000
FIRST_ID = UUID(int=0)

OPEN_CHUNK = text("""
    WITH chunk AS MATERIALIZED (SELECT * FROM deliveries WHERE id > :last_id ORDER BY id LIMIT :size)
    SELECT last.id AS last_id, d.id, d.notification_id, d.channel, d.round, d.updated_at
    FROM (SELECT id FROM chunk ORDER BY id DESC LIMIT 1) AS last
    LEFT JOIN chunk d ON d.status IN ('pending', 'retrying') AND d.channel = ANY(CAST(:channels AS text[]))
        AND NOT EXISTS (SELECT FROM outbox WHERE outbox.delivery_id = d.id)
    ORDER BY d.id
""")
ROUNDS = text("SELECT id, round FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])) AND id BETWEEN :first AND :last")
OUTBOX_ROWS = text("SELECT count(*) FROM outbox")
# A delivery that has changed since it was read is left alone: a result has arrived, or somebody has retried it.
PUT_BACK = text("""
    WITH stranded AS MATERIALIZED (
        SELECT d.id
        FROM unnest(CAST(:ids AS uuid[]), CAST(:times AS timestamptz[])) AS found (id, updated_at)
        JOIN deliveries d ON d.id = found.id AND d.updated_at = found.updated_at
        WHERE d.id BETWEEN :first AND :last AND d.status IN ('pending', 'retrying')
          AND NOT EXISTS (SELECT FROM outbox WHERE outbox.delivery_id = d.id)
        ORDER BY d.id FOR NO KEY UPDATE OF d
    ), changed AS (
        UPDATE deliveries SET status = 'pending', updated_at = clock_timestamp()
        FROM stranded WHERE deliveries.id = stranded.id AND deliveries.status IN ('pending', 'retrying')
        RETURNING deliveries.id, deliveries.channel, deliveries.round
    )
    INSERT INTO outbox (delivery_id, channel, due_at, leased_until, round)
    SELECT id, channel, now(), NULL, round FROM changed
    ON CONFLICT (delivery_id) DO NOTHING
    RETURNING delivery_id
""")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class OpenDelivery:
    """An open delivery without an outbox row. A message in RabbitMQ should belong to it."""

    id: UUID
    notification_id: UUID
    channel: str
    round: int
    updated_at: datetime


class OpenDeliveries:
    """Reads and repairs deliveries. Each method may raise `DatabaseUnavailable`."""

    def __init__(self, engine: AsyncEngine, *, chunk_size: int = DELIVERIES_PER_STATEMENT) -> None:
        self._engine = engine
        self._chunk_size = chunk_size

    async def without_outbox_row(self) -> list[OpenDelivery]:
        """Return all open deliveries without an outbox row."""
        found: list[OpenDelivery] = []
        last_id, size, channels = FIRST_ID, self._chunk_size, KNOWN_CHANNELS
        while rows := (await execute(self._engine, OPEN_CHUNK, last_id=last_id, size=size, channels=channels)).all():
            last_id = rows[0].last_id
            found += [
                OpenDelivery(row.id, row.notification_id, row.channel, row.round, row.updated_at)
                for row in rows
                if row.id is not None
            ]
        return found

    async def outbox_rows(self) -> int:
        """Return how many deliveries wait in the outbox."""
        return int((await execute(self._engine, OUTBOX_ROWS)).scalar_one())

    async def unknown(self, messages: Collection[DeliveryRound]) -> set[DeliveryRound]:
        """Return those whose delivery does not exist, or has not begun that round."""
        rounds: dict[UUID, int] = {}
        for ids in self._chunks(sorted({message.delivery_id for message in messages})):
            rows = await execute(self._engine, ROUNDS, ids=ids, first=ids[0], last=ids[-1])
            rounds.update((row.id, row.round) for row in rows)
        return {message for message in messages if message.round > rounds.get(message.delivery_id, 0)}

    async def put_back(self, deliveries: Sequence[OpenDelivery]) -> int:
        """Put deliveries back into the outbox, in a transaction per chunk; return how many were put back."""
        count = 0
        for chunk in self._chunks(deliveries):
            ids, times = [each.id for each in chunk], [each.updated_at for each in chunk]
            rows = await execute(self._engine, PUT_BACK, ids=ids, times=times, first=ids[0], last=ids[-1])
            count += len(rows.all())
        return count

    def _chunks(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        for start in range(0, len(items), self._chunk_size):
            yield items[start : start + self._chunk_size]
