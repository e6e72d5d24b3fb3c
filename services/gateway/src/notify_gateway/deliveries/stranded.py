"""Find deliveries that nothing will ever send, and put them back into the outbox.

An open delivery is either in the outbox or in RabbitMQ. If RabbitMQ has lost its message, for example with its disk,
the delivery would stay open forever. PostgreSQL does not show whether a message still waits in RabbitMQ, so the only
sign is that nothing has been heard of the delivery for a long time.

Messages may wait for that long if senders or status writers are stopped, or if senders are slower than their backlog
grows. A channel is therefore searched only while RabbitMQ reports that nothing waits for its senders or in its results,
and that both are being read. One check, at the repair, is enough: if the queue is empty then, every earlier message has
left it. Such a message is lost, or held by a sender, or in a retry queue, or its result is being written. The last
three get enough time, because a relay publishes the delivery only if nothing is heard of it for as long again. Thus a
message that was published late, after a long outage, is not sent twice.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import first_id_at
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_common.runtime.clock import utc_now
from notify_database.engine import execute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.deliveries.chunk_sizes import ChunkSizes
from notify_gateway.outbox.store import status_changes

log = logging.getLogger(__name__)

DELIVERIES_PER_STEP = 5_000
STEP_INTERVAL = 1.0  # seconds between steps, to keep the load low
PASS_INTERVAL = 3600.0  # seconds between the end of a pass over all deliveries and the next one

# The deliveries are searched in the order of their ids, because an index on the status would prevent HOT updates. The
# newest come first, because a gateway may not run for long enough to reach the oldest, of which hardly any is open.
# Locked rows are skipped, because a change is about to be committed for them. The relay publishes only pending
# deliveries. A result of an earlier message may still arrive: it is applied as usual, and then the relay deletes the
# outbox row.
REPAIR_CHUNK = text("""
    WITH chunk AS MATERIALIZED (
        SELECT id, status, updated_at FROM deliveries
        WHERE id < :before_id ORDER BY id DESC LIMIT :size
    ), stranded AS MATERIALIZED (
        SELECT d.id
        FROM chunk
        JOIN deliveries d ON d.id = chunk.id
        JOIN notifications n ON n.id = d.notification_id
        WHERE chunk.status IN ('pending', 'retrying') AND chunk.updated_at <= now() - CAST(:silence AS interval)
          AND d.status IN ('pending', 'retrying') AND d.updated_at <= now() - CAST(:silence AS interval)
          AND (n.send_at IS NULL OR n.send_at <= now() - CAST(:silence AS interval))
          AND d.channel = ANY(CAST(:channels AS text[]))
          AND NOT EXISTS (SELECT FROM outbox WHERE outbox.delivery_id = d.id)
        ORDER BY d.id
        FOR NO KEY UPDATE OF d SKIP LOCKED
    ), repaired AS (
        UPDATE deliveries SET status = 'pending', updated_at = clock_timestamp()
        FROM stranded WHERE deliveries.id = stranded.id
        RETURNING deliveries.id, deliveries.notification_id, deliveries.channel, deliveries.round, deliveries.attempt,
                  deliveries.updated_at
    ), queued AS (
        INSERT INTO outbox (delivery_id, channel, due_at, leased_until, round)
        SELECT id, channel, now() + CAST(:silence AS interval), NULL, round FROM repaired
        ON CONFLICT (delivery_id) DO NOTHING
    )
    SELECT chunk.first_id, repaired.*
    FROM (SELECT id AS first_id FROM chunk ORDER BY id LIMIT 1) AS chunk LEFT JOIN repaired ON true
""")


class StrandedDeliveries:
    """Searches all deliveries, step by step, for stranded ones, from the newest to the oldest.

    Several gateways may do so at the same time. Only the deliveries over the channels that `idle_channels` returns are
    repaired; a later pass finds the others.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        publish_changes: Callable[[Sequence[StatusChange]], None],
        count_repaired: Callable[[float], None],
        idle_channels: Callable[[], Awaitable[Collection[Channel]]],
        *,
        silence: timedelta,
        chunk_size: int = DELIVERIES_PER_STEP,
    ) -> None:
        self._engine = engine
        self._publish_changes = publish_changes
        self._count_repaired = count_repaired
        self._idle_channels = idle_channels
        self._silence = silence
        self._chunk_sizes = ChunkSizes[None](chunk_size)
        self._before_id: UUID | None = None
        """The first id of the last chunk; None at the beginning of a pass."""
        self._next_step = time.monotonic()

    async def step(self) -> None:
        """Repair the stranded deliveries of the next chunk, if the next step is due."""
        if time.monotonic() < self._next_step:
            return
        more = await self.repair_chunk()
        self._next_step = time.monotonic() + (STEP_INTERVAL if more else PASS_INTERVAL)

    async def repair_chunk(self) -> bool:
        """Repair the stranded deliveries of the next chunk; return False if it was the last one of the pass.

        While no channel is idle, the chunk is not searched, and remains the next one.
        """
        channels = await self._idle_channels()
        if not channels:
            return True
        with self._chunk_sizes.next(None) as size:
            found = await execute(
                self._engine,
                REPAIR_CHUNK,
                # No delivery that was accepted later can have been silent for long enough.
                before_id=self._before_id or first_id_at(utc_now() - self._silence),
                size=size,
                silence=self._silence,
                channels=list(channels),
            )
        rows = found.all()
        # The last chunk of a pass is empty. A chunk in which nothing was repaired yields a single row without an id.
        self._before_id = rows[0].first_id if rows else None
        if changes := status_changes([row for row in rows if row.id], DeliveryStatus.PENDING):
            log.warning(
                "deliveries without a message were put back into the outbox", extra={"deliveries": len(changes)}
            )
            self._count_repaired(len(changes))
            self._publish_changes(changes)
        return bool(rows)
