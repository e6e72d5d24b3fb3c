"""Build the operator overview: backlogs, and rates per second that are counted only while it is being read."""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from notify_common.contracts.channels import KNOWN_CHANNELS, Channel
from notify_common.contracts.ids import accepted_at, first_id_at
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_common.contracts.topology import all_results, archives, delivery_queue_name, retry_exchange
from sqlalchemy import Row, text

from notify_gateway.console.queue_statistics import QueueStatistics, QueueStatisticsClient
from notify_gateway.console.schemas import ChannelOverview, Failures, SecondsOverview, ServiceOverview
from notify_gateway.database import TenantReads
from notify_gateway.events.hub import EventHub
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore
from notify_gateway.stored_values import representable, short

RESULTS_QUEUES = [binding.queue.name for binding in all_results()]
ARCHIVES = [binding.queue.name for binding in archives()]
SECONDS = 120  # the time that the charts cover
INTERVAL = 1.0  # seconds for which an overview is cached, so that more readers do not mean more load
SETTLING = 1.0  # seconds; by then, all notifications accepted in a given second are committed
IDLE_TIMEOUT = 10.0  # seconds; counting stops if there is no reader for this long
LATENCIES = 2000  # the latest sent deliveries per channel, which the percentiles are based on
LATEST = 10_000  # the newest deliveries, which are searched for failures
ALL_TENANTS = ""  # no tenant has this name, so operators do not use up the reads of a tenant

ACCEPTED = text("""
    SELECT channel, ('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000 AS second,
           count(*) AS accepted
    FROM deliveries WHERE id >= :first_id AND id < :end_id GROUP BY 1, 2
""")
# The status has no index, so this query scans only the newest deliveries, in the order of the primary key.
FAILED = text(f"""
    SELECT latest.channel, a.error_class, {short("a.error_code")} AS error_code, count(*) AS count,
           {representable("max(latest.updated_at)")} AS last_at,
           (array_agg(latest.notification_id ORDER BY latest.updated_at DESC))[1] AS last_notification_id
    FROM (SELECT * FROM deliveries ORDER BY id DESC LIMIT :latest) AS latest
    LEFT JOIN attempts a ON a.delivery_id = latest.id AND a.attempt = latest.attempt
    WHERE latest.status = 'failed'
    GROUP BY 1, 2, 3 ORDER BY last_at DESC LIMIT 50
""")  # noqa: S608 - the expressions are constants


class Overview:
    """A cached overview that all readers share."""

    def __init__(
        self, reads: TenantReads, outbox: OutboxStore, relay: OutboxRelay, hub: EventHub, queues: QueueStatisticsClient
    ) -> None:
        self._reads = reads
        self._outbox = outbox
        self._relay = relay
        self._hub = hub
        self._queues = queues
        self._lock = asyncio.Lock()
        self._refresh_at = 0.0
        self._cached: ServiceOverview | None = None
        self._idle_task: asyncio.Task[None] | None = None
        self._counting_since = math.inf  # seconds since the epoch
        self._reset_counts()

    def _reset_counts(self) -> None:
        self._counts = Counter[tuple[int, Channel, str]]()  # by second, channel, and status or "accepted"
        self._accepted_until = 0  # the first second whose accepted deliveries have not been counted
        self._latencies = {channel: deque[float](maxlen=LATENCIES) for channel in Channel}

    async def read(self) -> ServiceOverview:
        """Return an overview that is at most `INTERVAL` seconds old; may raise the errors of `TenantReads`."""
        async with self._lock:
            if self._cached is None or time.monotonic() >= self._refresh_at:
                await self._keep_counting()
                self._cached = await self._collect()
                self._refresh_at = time.monotonic() + INTERVAL
            return self._cached

    async def _keep_counting(self) -> None:
        if self._idle_task is None:
            self._reset_counts()
            await self._hub.watch(self._count)
            self._counting_since = time.time()
        else:
            self._idle_task.cancel()
        self._idle_task = asyncio.create_task(self._stop_when_idle())

    async def _stop_when_idle(self) -> None:
        await asyncio.sleep(IDLE_TIMEOUT)
        # A read cancels this task even while the task waits for the lock, so counting continues for the new reader.
        async with self._lock:
            await self._hub.unwatch(self._count)
            self._idle_task = None

    async def aclose(self) -> None:
        """Stop counting until the next read."""
        async with self._lock:
            if self._idle_task is not None:
                self._idle_task.cancel()
                self._idle_task = None
                await self._hub.unwatch(self._count)

    def _count(self, changes: Sequence[StatusChange]) -> None:
        for change in changes:
            at = change.changed_at.timestamp()
            self._counts[int(at), change.channel, change.status] += 1
            if change.status is DeliveryStatus.SENT:
                self._latencies[change.channel].append(max(0.0, at - accepted_at(change.notification_id)))

    async def _collect(self) -> ServiceOverview:
        end = int(time.time() - SETTLING)
        begin = end - SECONDS
        backlog, queues = await asyncio.gather(self._outbox.backlog(), self._queues.read())
        failures = await self._read_database(max(begin, self._accepted_until), end)
        for key in [key for key in self._counts if key[0] < begin]:
            del self._counts[key]
        return ServiceOverview(
            at=datetime.fromtimestamp(end, UTC),
            live=self._hub.live,
            rabbitmq_connected=self._relay.connected,
            outbox_rows=int(backlog.rows),
            outbox_oldest_seconds=backlog.oldest,
            results_waiting=_ready(queues, *RESULTS_QUEUES),
            dead_letters=_ready(queues, *ARCHIVES),
            channels=[self._channel(channel, range(begin, end), queues) for channel in Channel],
            failures=[Failures.model_validate(row, from_attributes=True) for row in failures],
        )

    async def _read_database(self, begin: int, end: int) -> Sequence[Row[Any]]:
        """Count the deliveries accepted from `begin` to `end` (epoch seconds); return the latest failures."""
        first_id, end_id = (first_id_at(datetime.fromtimestamp(second, UTC)) for second in (begin, end))
        for row in await self._reads.execute(ALL_TENANTS, ACCEPTED, first_id=first_id, end_id=end_id):
            if row.channel in KNOWN_CHANNELS:
                self._counts[row.second, Channel(row.channel), "accepted"] += row.accepted
        self._accepted_until = end
        return (await self._reads.execute(ALL_TENANTS, FAILED, latest=LATEST)).all()

    def _channel(
        self, channel: Channel, seconds: range, queues: Mapping[str, QueueStatistics] | None
    ) -> ChannelOverview:
        queue = (queues or {}).get(delivery_queue_name(channel))
        retries = f"{retry_exchange(channel).name}."
        latencies = sorted(self._latencies[channel])
        return ChannelOverview(
            channel=channel,
            waiting=None if queue is None else queue.ready,
            in_flight=None if queue is None else queue.unacked,
            consumers=None if queue is None else queue.consumers,
            retrying=None
            if queues is None
            else sum(each.ready for name, each in queues.items() if name.startswith(retries)),
            latency_p50=latencies[len(latencies) // 2] if latencies else None,
            latency_p95=latencies[len(latencies) * 95 // 100] if latencies else None,
            seconds=SecondsOverview(
                accepted=[self._counts[second, channel, "accepted"] for second in seconds],
                sent=self._changes(seconds, channel, DeliveryStatus.SENT),
                retrying=self._changes(seconds, channel, DeliveryStatus.RETRYING),
                failed=self._changes(seconds, channel, DeliveryStatus.FAILED),
            ),
        )

    def _changes(self, seconds: range, channel: Channel, status: DeliveryStatus) -> list[int]:
        return [self._counts[second, channel, status] for second in seconds if second >= self._counting_since]


def _ready(queues: Mapping[str, QueueStatistics] | None, *names: str) -> int | None:
    found = [queues[name].ready for name in names if name in queues] if queues else []
    return sum(found) if found else None
