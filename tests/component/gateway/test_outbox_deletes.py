"""The outbox rows of confirmed deliveries are deleted in the background, several batches at a time."""

import asyncio
from collections.abc import Sequence

from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_database.errors import DatabaseUnavailable
from notify_gateway.outbox.lease import LEASE, Lease, lease_clock
from notify_gateway.outbox.store import Held, OutboxStore
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import hand_on
from support.outbox import add_row, outbox_is_empty, published, running_relay
from support.services import delivery_requested
from typing_extensions import override


class Deletes(OutboxStore):
    """An outbox that records how many rows each delete has, and executes no delete before `may_execute` is set."""

    counts: asyncio.Queue[int]
    may_execute: asyncio.Event

    @override
    async def delete(self, held: Sequence[Held]) -> None:
        self.counts.put_nowait(len(held))
        await self.may_execute.wait()
        await super().delete(held)


async def test_deliveries_are_published_while_rows_are_deleted(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    counts, may_execute = asyncio.Queue[int](), asyncio.Event()
    deletes = type("TheseDeletes", (Deletes,), {"counts": counts, "may_execute": may_execute})
    async with running_relay(rabbit, postgres, outbox_class=deletes), hand_on(rabbit) as hand:
        for _ in range(4):
            row = await add_row(engine)
            assert await published(hand, Channel.TELEGRAM, 1) == [row]
        may_execute.set()
        await outbox_is_empty(engine)
    deleted = [counts.get_nowait() for _ in range(counts.qsize())]
    assert sum(deleted) == 4
    # The second and the third were confirmed before the fourth was published.
    assert len(deleted) <= 3


class Outage(OutboxStore):
    """An outbox whose deletes fail until `over`; then it puts the number of rows of each into a queue."""

    counts: asyncio.Queue[int]
    failed: asyncio.Event
    over: asyncio.Event

    @override
    async def delete(self, held: Sequence[Held]) -> None:
        if not self.over.is_set():
            self.failed.set()
            raise DatabaseUnavailable("the connection was lost")
        self.counts.put_nowait(len(held))
        await super().delete(held)


async def test_rows_that_are_confirmed_during_an_outage_are_deleted_first(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    """Their leases may have ended, so the next poll would find them."""
    counts, failed, over = asyncio.Queue[int](), asyncio.Event(), asyncio.Event()
    outage = type("ThisOutage", (Outage,), {"counts": counts, "failed": failed, "over": over})
    async with running_relay(rabbit, postgres, outbox_class=outage) as relay, hand_on(rabbit) as hand:
        for _ in range(3):
            request = delivery_requested()
            relay.hand_over([request], Lease.beginning(lease_clock(), utc_now() + LEASE))
            assert await published(hand, Channel.TELEGRAM, 1) == [request.delivery_id]
            await failed.wait()
        over.set()
        # The second was confirmed before the third was published.
        assert await counts.get() >= 2
