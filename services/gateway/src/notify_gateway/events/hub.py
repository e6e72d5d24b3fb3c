"""Distribute status changes to this process's subscribers; the feed runs only while there are subscribers."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from notify_common.contracts.messages import StatusChange
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.errors import DatabaseUnavailable

from notify_gateway.errors import TooManySubscribers
from notify_gateway.events.feed import EventFeed
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.schemas import StatusEvent
from notify_gateway.events.server_sent import RESET, live_chunk, status_chunk
from notify_gateway.events.subscriber import BYTES_PER_WRITE, Chunk, Subscriber, UnsentMemory
from notify_gateway.slices import in_slices

log = logging.getLogger(__name__)

MAX_SUBSCRIBERS = 1000
MAX_SUBSCRIBERS_PER_TENANT = 500  # lower than the total, so that one tenant cannot lock out the others
CLOSE_TIMEOUT = 2.0  # seconds allowed for writing queued events when the process stops
LIVE_TIMEOUT = 2.0  # seconds after which a subscriber is admitted even without a connection to RabbitMQ
# Seconds from one write of a tenant to the next, for all of its streams together. A write costs about 0.04 ms of CPU
# time, so others get the rest. A stream that has to wait writes several events at once.
WRITE_INTERVAL = 0.00025

Watcher = Callable[[Sequence[StatusChange]], None]
SubscriberKey = UUID | tuple[str, str] | str
"""A notification id, a pair of tenant and user, or a tenant."""


class EventHub:
    """Pushes each change to the subscribers whose filters it matches.

    Changes arrive in batches. The events of a batch are collected by filter, and those of each filter are joined into
    chunks. Then each chunk goes into the queue of every subscriber with this filter. Both steps pause after each slice
    of their work (`in_slices`), so that other requests do not wait for a large batch or for thousands of pushes.
    """

    def __init__(self, settings: RabbitSettings, role: str, history: EventHistory) -> None:
        self._history = history
        self._feed = EventFeed(
            settings, role, self._receive, connected=self._connected, lost=self._lost, missed=self._missed
        )
        self._switching = asyncio.Lock()  # held so that one feed ends before the next one starts
        self._feeding: asyncio.Task[None] | None = None
        self._live = asyncio.Event()
        # The subscribers with the same filter, by the narrowest part of the filter. A change therefore needs three
        # look-ups, however many subscribers exist.
        self._subscribers: dict[SubscriberKey, dict[EventFilter, set[Subscriber]]] = {}
        self._admitted: set[Subscriber] = set()
        self._unsent = UnsentMemory()
        self._tenants = Counter[str]()
        self._next_writes: dict[str, float] = {}
        self._watchers: set[Watcher] = set()
        self._closed = False

    @property
    def live(self) -> bool:
        """True if changes arrive as they are published."""
        return self._live.is_set()

    @property
    def count(self) -> int:
        """The number of subscribers."""
        return self._tenants.total()

    @asynccontextmanager
    async def subscribe(self, event_filter: EventFilter, abort: Callable[[], None]) -> AsyncIterator[Subscriber]:
        """Subscribe until the context ends; `abort` disconnects a slow client. May raise `TooManySubscribers`."""
        tenant = event_filter.tenant
        if self.count >= MAX_SUBSCRIBERS or self._tenants[tenant] >= MAX_SUBSCRIBERS_PER_TENANT:
            raise TooManySubscribers
        subscriber, key = Subscriber(event_filter, abort, self._unsent), _key(event_filter)
        self._unsent.subscribers.add(subscriber)
        self._tenants[tenant] += 1
        self._subscribers.setdefault(key, {}).setdefault(event_filter, set()).add(subscriber)
        try:
            if not self._closed:
                await self._start_feed()
            self._admitted.add(subscriber)
            if self._closed:
                subscriber.end()  # after that, an `EventSource` reconnects, to another gateway; a refusal would stop it
            yield subscriber
        finally:
            self._tenants[tenant] -= 1
            if not self._tenants[tenant]:
                del self._tenants[tenant]
                self._next_writes.pop(tenant, None)
            self._admitted.discard(subscriber)
            self._unsent.subscribers.discard(subscriber)
            subscriber.end()  # it takes no more chunks
            subscriber.discard()
            self._forget(key, subscriber)
            await self._stop_idle_feed()

    def pause_after_write(self, tenant: str, now: float) -> float:
        """Return the seconds until a stream that has written at `now` may write again.

        All streams of the tenant share the time for writing.
        """
        self._next_writes[tenant] = max(now, self._next_writes.get(tenant, now)) + WRITE_INTERVAL
        return self._next_writes[tenant] - now

    async def watch(self, watcher: Watcher) -> None:
        """Call `watcher` with the changes of all tenants until `unwatch` is called."""
        self._watchers.add(watcher)
        await self._start_feed()

    async def unwatch(self, watcher: Watcher) -> None:
        """Stop calling `watcher`."""
        self._watchers.discard(watcher)
        await self._stop_idle_feed()

    def close(self) -> None:
        """End all streams before the process stops."""
        self._closed = True
        self._end_all()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._abort_all)

    async def _start_feed(self) -> None:
        async with self._switching:
            if self._feeding is None or self._feeding.done():
                self._feeding = asyncio.create_task(self._feed.run())
                self._feeding.add_done_callback(self._feed_ended)
        with suppress(TimeoutError):
            async with asyncio.timeout(LIVE_TIMEOUT):
                await self._live.wait()

    async def _stop_idle_feed(self) -> None:
        async with self._switching:
            if self._feeding is None or self._subscribers or self._watchers:
                return
            feeding, self._feeding = self._feeding, None
            feeding.cancel()
            await asyncio.wait({feeding})

    def _connected(self) -> None:
        # Subscribers may have missed changes. Ending their streams makes them reconnect and replay from PostgreSQL.
        self._end_all()
        self._live.set()

    def _lost(self) -> None:
        self._live.clear()
        self._push_to_all(live_chunk(live=False))

    def _missed(self) -> None:
        # Clients must reload: a replay needs a start time, but the time of the first dropped change is unknown.
        self._push_to_all(RESET)

    def _push_to_all(self, data: bytes) -> None:
        for subscriber in self._admitted:
            subscriber.push(Chunk(data))  # a chunk counts for one tenant, so tenants cannot share one

    def _end_all(self) -> None:
        for subscriber in self._admitted:
            subscriber.end()

    def _abort_all(self) -> None:
        for subscriber in self._admitted:
            subscriber.abort()

    def _feed_ended(self, feeding: "asyncio.Task[None]") -> None:
        if not feeding.cancelled() and (bug := feeding.exception()) is not None:
            log.error("the event feed failed", exc_info=bug)
            self._end_all()

    async def _receive(self, changes: Sequence[StatusChange]) -> None:
        for watcher in list(self._watchers):
            watcher(changes)
        if not self._subscribers:
            return
        if all(isinstance(key, UUID) for key in self._subscribers):
            changes = [change for change in changes if change.notification_id in self._subscribers]
        try:
            events = await self._history.events(changes)
        except DatabaseUnavailable as unavailable:
            error = {"error": str(unavailable)}
            log.warning("cannot look up the owners of events; subscribers must reconnect", extra=error)
            self._end_all()
            return
        by_filter = await self._rendered_by_filter(events)
        async for subscriber, chunk in in_slices(self._pushes(by_filter)):
            subscriber.push(chunk)

    async def _rendered_by_filter(
        self, events: Iterable[tuple[str, StatusEvent]]
    ) -> Mapping[EventFilter, Sequence[bytes]]:
        """Return the events, each with its tenant, that match the filters of subscribers; each is rendered once."""
        by_filter: defaultdict[EventFilter, list[bytes]] = defaultdict(list)
        async for tenant, event in in_slices(events):
            rendered: dict[bool, bytes] = {}
            for key in (event.notification_id, (tenant, event.user_id), tenant):
                for event_filter in self._subscribers.get(key, ()):
                    if event_filter.matches(tenant, event):
                        integer_users = event_filter.integer_users
                        if integer_users not in rendered:
                            rendered[integer_users] = status_chunk(event, integer_users=integer_users)
                        by_filter[event_filter].append(rendered[integer_users])
        return by_filter

    def _pushes(self, by_filter: Mapping[EventFilter, Sequence[bytes]]) -> Iterator[tuple[Subscriber, Chunk]]:
        """Yield each subscriber with each chunk for it. A chunk has several events, because each push takes time."""
        chunks: dict[bytes, Chunk] = {}  # filters that match the same events share their chunks
        for event_filter, events in by_filter.items():
            for part in _joined(events):
                chunk = chunks.setdefault(part, Chunk(part))
                # Subscribers may come and go between two pushes. Those that have left take no more chunks.
                for subscriber in tuple(self._subscribers.get(_key(event_filter), {}).get(event_filter, ())):
                    yield subscriber, chunk

    def _forget(self, key: SubscriberKey, subscriber: Subscriber) -> None:
        filters = self._subscribers[key]
        filters[subscriber.event_filter].discard(subscriber)
        if not filters[subscriber.event_filter]:
            del filters[subscriber.event_filter]
        if not filters:
            del self._subscribers[key]


def _joined(events: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the events in parts that are not larger than a write, unless a single event is."""
    part: list[bytes] = []
    size = 0
    for event in events:
        if part and size + len(event) > BYTES_PER_WRITE:
            yield b"".join(part)
            part, size = [], 0
        part.append(event)
        size += len(event)
    yield b"".join(part)


def _key(event_filter: EventFilter) -> SubscriberKey:
    if event_filter.notification_id is not None:
        return event_filter.notification_id
    if event_filter.user is not None:
        return event_filter.tenant, event_filter.user
    return event_filter.tenant
