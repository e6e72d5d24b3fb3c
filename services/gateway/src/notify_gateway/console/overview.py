"""What goes in and out, second by second, and where it waits: counted while somebody looks, and not otherwise."""

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import accepted_at, first_id_at
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_common.contracts.topology import delivery_queue_name, retry_exchange
from notify_database.engine import database_errors, without_transactions
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.console.queue_statistics import QueueStatistics, QueueStatisticsClient
from notify_gateway.console.schemas import ChannelOverview, Failures, OverviewView, SecondsOverview
from notify_gateway.events.hub import EventHub
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore

SECONDS = 120  # that are told
INTERVAL = 1.0  # seconds: however many look, nothing is asked for more often
SETTLING = 1.0  # seconds after which a second's notifications are committed
FORGOTTEN_AFTER = 10.0  # seconds after the last look
LATENCIES = 2000  # of the last sent deliveries of a channel
LATEST = 10_000  # deliveries among which failures are looked for

ACCEPTED = text("""
    SELECT channel, ('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000 AS second,
           count(*) AS accepted
    FROM deliveries WHERE id >= :first_id AND id < :end_id GROUP BY 1, 2
""")
# By id and not by status, which has no index: the newest ones are read from the end.
FAILED = text("""
    SELECT latest.channel, a.error_class, a.error_code, count(*) AS count, max(latest.updated_at) AS last_at,
           (array_agg(latest.notification_id ORDER BY latest.updated_at DESC))[1] AS last_notification_id
    FROM (SELECT * FROM deliveries ORDER BY id DESC LIMIT :latest) AS latest
    LEFT JOIN attempts a ON a.delivery_id = latest.id AND a.attempt = latest.attempt
    WHERE latest.status = 'failed'
    GROUP BY 1, 2, 3 ORDER BY last_at DESC LIMIT 50
""")


class Overview:
    """One look for all who look."""

    def __init__(
        self, engine: AsyncEngine, outbox: OutboxStore, relay: OutboxRelay, hub: EventHub, queues: QueueStatisticsClient
    ) -> None:
        self._engine = without_transactions(engine)
        self._outbox = outbox
        self._relay = relay
        self._hub = hub
        self._queues = queues
        self._looking = asyncio.Lock()
        self._look_again_at = 0.0
        self._last: OverviewView | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._watched_since = math.inf  # seconds since the epoch
        self._forget()

    def _forget(self) -> None:
        self._accepted: defaultdict[int, Counter[Channel]] = defaultdict(Counter)
        self._accepted_until = 0  # the first second that is not counted yet
        self._ended: defaultdict[int, Counter[tuple[Channel, DeliveryStatus]]] = defaultdict(Counter)
        self._latencies = {channel: deque[float](maxlen=LATENCIES) for channel in Channel}

    async def read(self) -> OverviewView:
        """All of it, at most a second old; raises `DatabaseUnavailable`."""
        async with self._looking:
            if self._last is None or time.monotonic() >= self._look_again_at:
                await self._watch()
                self._last = await self._collect()
                self._look_again_at = time.monotonic() + INTERVAL
            return self._last

    async def _watch(self) -> None:
        if self._forgetting is None:
            self._forget()
            await self._hub.watch(self._count)
            self._watched_since = time.time()
        else:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(FORGOTTEN_AFTER, self._nobody_looks)

    def _nobody_looks(self) -> None:
        self._ending = asyncio.create_task(self._end(self._forgetting))

    async def aclose(self) -> None:
        """Count no more, until the next look."""
        await self._end(self._forgetting)

    async def _end(self, timer: asyncio.TimerHandle | None) -> None:
        async with self._looking:
            # Unless somebody has looked meanwhile, and set another.
            if timer is not None and timer is self._forgetting:
                timer.cancel()
                self._forgetting = None
                await self._hub.unwatch(self._count)

    def _count(self, changes: Sequence[StatusChange]) -> None:
        for change in changes:
            at = change.changed_at.timestamp()
            self._ended[int(at)][change.channel, change.status] += 1
            if change.status is DeliveryStatus.SENT:
                self._latencies[change.channel].append(max(0.0, at - accepted_at(change.notification_id)))

    async def _collect(self) -> OverviewView:
        now = time.time()
        # The last second that is over, and committed.
        end = int(now - SETTLING)
        begin = end - SECONDS
        (rows, oldest), queues = await asyncio.gather(self._outbox.backlog(), self._queues.read())
        failures = await self._count_stored(max(begin, self._accepted_until), end)
        for counted in (self._accepted, self._ended):
            for second in [second for second in counted if second < begin]:
                del counted[second]
        return OverviewView(
            at=datetime.fromtimestamp(end, UTC),
            live=self._hub.live,
            rabbitmq_connected=self._relay.connected,
            outbox_rows=int(rows),
            outbox_oldest_seconds=oldest,
            results_waiting=_ready(queues, "notifications.results"),
            dead_letters=_ready(queues, "notifications.dead"),
            channels=[self._channel(channel, range(begin, end), queues) for channel in Channel],
            failures=[Failures.model_validate(row, from_attributes=True) for row in failures],
        )

    async def _count_stored(self, begin: int, end: int) -> Sequence[Row[Any]]:
        bounds = [first_id_at(datetime.fromtimestamp(second, UTC)) for second in (begin, end)]
        with database_errors():
            async with self._engine.connect() as connection:
                for row in await connection.execute(ACCEPTED, {"first_id": bounds[0], "end_id": bounds[1]}):
                    self._accepted[row.second][Channel(row.channel)] += row.accepted
                self._accepted_until = end
                failures = (await connection.execute(FAILED, {"latest": LATEST})).all()
        return failures

    def _channel(
        self, channel: Channel, seconds: range, queues: Mapping[str, QueueStatistics] | None
    ) -> ChannelOverview:
        figures = (queues or {}).get(delivery_queue_name(channel))
        retries = f"{retry_exchange(channel).name}."
        latencies = sorted(self._latencies[channel])
        return ChannelOverview(
            channel=channel,
            waiting=None if figures is None else figures.ready,
            in_flight=None if figures is None else figures.unacked,
            consumers=None if figures is None else figures.consumers,
            retrying=None
            if queues is None
            else sum(each.ready for name, each in queues.items() if name.startswith(retries)),
            latency_p50=latencies[len(latencies) // 2] if latencies else None,
            latency_p95=latencies[len(latencies) * 95 // 100] if latencies else None,
            seconds=SecondsOverview(
                accepted=[self._accepted[second][channel] if second in self._accepted else 0 for second in seconds],
                **{
                    status.value: [self._of(second, channel, status) for second in seconds]
                    for status in (DeliveryStatus.SENT, DeliveryStatus.RETRYING, DeliveryStatus.FAILED)
                },
            ),
        )

    def _of(self, second: int, channel: Channel, status: DeliveryStatus) -> int | None:
        """None: nobody has looked then."""
        if second < self._watched_since:
            return None
        return self._ended[second][channel, status] if second in self._ended else 0


def _ready(queues: Mapping[str, QueueStatistics] | None, queue: str) -> int | None:
    figures = (queues or {}).get(queue)
    return None if figures is None else figures.ready
