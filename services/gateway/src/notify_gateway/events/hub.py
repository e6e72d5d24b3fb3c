"""Distribute status changes to this process's subscribers; the feed runs only while there are subscribers."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from notify_common.contracts.messages import StatusChange
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.errors import DatabaseUnavailable

from notify_gateway.errors import TooManySubscribers
from notify_gateway.events.feed import EventFeed
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.server_sent import RESET, live_chunk, status_chunk
from notify_gateway.events.subscriber import Backlog, Chunk, Subscriber

log = logging.getLogger(__name__)

MAX_SUBSCRIBERS = 1000
MAX_SUBSCRIBERS_PER_TENANT = 500  # lower than the total, so that one tenant cannot lock out the others
CLOSE_TIMEOUT = 2.0  # seconds allowed for writing queued events when the process stops
LIVE_TIMEOUT = 2.0  # seconds after which a subscriber is admitted even without a connection to RabbitMQ

Watcher = Callable[[Sequence[StatusChange]], None]
SubscriberKey = UUID | tuple[str, str] | str
"""A notification id, a pair of tenant and user, or a tenant."""


class EventHub:
    """Pushes each change to the subscribers whose filters it matches."""

    def __init__(self, settings: RabbitSettings, role: str, history: EventHistory) -> None:
        self._history = history
        self._feed = EventFeed(
            settings, role, self._receive, connected=self._connected, lost=self._lost, missed=self._missed
        )
        self._switching = asyncio.Lock()  # held so that one feed ends before the next one starts
        self._feeding: asyncio.Task[None] | None = None
        self._live = asyncio.Event()
        # Each key is the narrowest part of a filter, so a change needs three look-ups, however many subscribers exist.
        self._subscribers: defaultdict[SubscriberKey, set[Subscriber]] = defaultdict(set)
        self._admitted: set[Subscriber] = set()
        self._backlog = Backlog()
        self._tenants = Counter[str]()
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
        subscriber, key = Subscriber(event_filter, abort, self._backlog), _key(event_filter)
        self._backlog.subscribers.add(subscriber)
        self._tenants[tenant] += 1
        self._subscribers[key].add(subscriber)
        try:
            if not self._closed:
                await self._start_feed()
            self._admitted.add(subscriber)
            if self._closed:
                subscriber.end()  # a refusal would end `EventSource` for good; so it reconnects, to another gateway
            yield subscriber
        finally:
            self._tenants[tenant] -= 1
            if not self._tenants[tenant]:
                del self._tenants[tenant]
            self._admitted.discard(subscriber)
            self._backlog.subscribers.discard(subscriber)
            subscriber.discard()
            self._subscribers[key].discard(subscriber)
            if not self._subscribers[key]:
                del self._subscribers[key]
            await self._stop_idle_feed()

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
        for tenant, event in events:
            chunks: dict[bool, Chunk] = {}
            for key in (event.notification_id, (tenant, event.user_id), tenant):
                for subscriber in self._subscribers.get(key, ()):
                    if subscriber.event_filter.matches(tenant, event):
                        integer_users = subscriber.event_filter.integer_users
                        if (chunk := chunks.get(integer_users)) is None:
                            chunk = chunks[integer_users] = Chunk(status_chunk(event, integer_users=integer_users))
                        subscriber.push(chunk)


def _key(event_filter: EventFilter) -> SubscriberKey:
    if event_filter.notification_id is not None:
        return event_filter.notification_id
    if event_filter.user is not None:
        return event_filter.tenant, event_filter.user
    return event_filter.tenant
