"""Who listens to changes of status, and what each of them is to hear. Nothing is kept open while nobody listens."""

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from notify_common.contracts.messages import StatusChange
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.errors import DatabaseUnavailable

from notify_gateway.errors import TooManySubscribers
from notify_gateway.events.feed import EventFeed
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.schemas import StatusEvent
from notify_gateway.events.server_sent import RESET, live_chunk, status_chunk, take_for_a_write

log = logging.getLogger(__name__)

MOST_LISTENERS = 1000
MOST_OF_A_TENANT = 500  # so that no tenant keeps the others out
KEPT_BYTES = 4 * 1024 * 1024  # for a listener that reads slower than things happen
CLOSE_TIMEOUT = 2.0  # seconds for what is still to be written when the process stops
LIVE_TIMEOUT = 2.0  # seconds until a listener is let in although RabbitMQ does not answer

Watcher = Callable[[Sequence[StatusChange]], None]


class Subscriber:
    """One who listens: what is to be written to the client, in order."""

    def __init__(self, wanted: EventFilter, abort: Callable[[], None]) -> None:
        self.wanted = wanted
        self.abort = abort
        self._chunks: deque[bytes] = deque()
        self._kept = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def next(self) -> bytes | None:
        """What is to be written next; None at the end."""
        while not self._chunks:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        written = take_for_a_write(self._chunks)
        self._kept -= len(written)
        return written

    def push(self, chunk: bytes) -> None:
        """Have it written; one who is too slow is dropped, and can come back for what is missing."""
        if self._ended:
            return
        if self._kept + len(chunk) > KEPT_BYTES:
            log.info("a listener that does not read is dropped", extra={"tenant": self.wanted.tenant})
            self._chunks.clear()
            self.end()
            self.abort()
        else:
            self._kept += len(chunk)
            self._chunks.append(chunk)
            self._changed.set()

    def end(self) -> None:
        """Nothing more, after what is there."""
        self._ended = True
        self._changed.set()


class EventHub:
    """Hands each change to those who want it."""

    def __init__(self, settings: RabbitSettings, role: str, history: EventHistory) -> None:
        self._history = history
        self._feed = EventFeed(settings, role, self._receive, began=self._began, lost=self._lost, missed=self._missed)
        self._switching = asyncio.Lock()  # one feed ends before another begins
        self._feeding: asyncio.Task[None] | None = None
        self._live = asyncio.Event()
        # By what they want most narrowly: however many listen, a change is looked up three times.
        self._listeners: defaultdict[UUID | tuple[str, int] | str, set[Subscriber]] = defaultdict(set)
        self._let_in: set[Subscriber] = set()
        self._tenants = Counter[str]()
        self._watchers: set[Watcher] = set()
        self._closed = False

    @property
    def live(self) -> bool:
        """Whether changes are heard as they are told."""
        return self._live.is_set()

    @property
    def count(self) -> int:
        """How many listen."""
        return self._tenants.total()

    @asynccontextmanager
    async def listening(self, wanted: EventFilter, abort: Callable[[], None]) -> AsyncIterator[Subscriber]:
        """Listen for as long as the context lasts. `abort` ends the connection of one who does not read."""
        if self._closed or self.count >= MOST_LISTENERS or self._tenants[wanted.tenant] >= MOST_OF_A_TENANT:
            raise TooManySubscribers
        listener, key = Subscriber(wanted, abort), _key(wanted)
        self._tenants[wanted.tenant] += 1
        self._listeners[key].add(listener)
        try:
            await self._start()
            self._let_in.add(listener)
            if self._closed:
                listener.end()
            yield listener
        finally:
            self._tenants[wanted.tenant] -= 1
            if not self._tenants[wanted.tenant]:
                del self._tenants[wanted.tenant]
            self._let_in.discard(listener)
            self._listeners[key].discard(listener)
            if not self._listeners[key]:
                del self._listeners[key]
            await self._stop_unless_wanted()

    async def watch(self, watcher: Watcher) -> None:
        """Have `watcher` called with all changes, whose ever they are."""
        self._watchers.add(watcher)
        await self._start()

    async def unwatch(self, watcher: Watcher) -> None:
        """Call it no more."""
        self._watchers.discard(watcher)
        await self._stop_unless_wanted()

    def close(self) -> None:
        """End all: the process stops."""
        self._closed = True
        self._end_all()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._abort_all)

    async def _start(self) -> None:
        async with self._switching:
            if self._feeding is None or self._feeding.done():
                self._feeding = asyncio.create_task(self._feed.run())
                self._feeding.add_done_callback(self._feed_ended)
        with suppress(TimeoutError):
            async with asyncio.timeout(LIVE_TIMEOUT):
                await self._live.wait()

    async def _stop_unless_wanted(self) -> None:
        async with self._switching:
            if self._feeding is None or self._listeners or self._watchers:
                return
            feeding, self._feeding = self._feeding, None
            feeding.cancel()
            await asyncio.wait({feeding})

    def _began(self) -> None:
        # They have missed what was told before: each comes back, and gets it from PostgreSQL.
        self._end_all()
        self._live.set()

    def _lost(self) -> None:
        self._live.clear()
        for listener in self._let_in:
            listener.push(live_chunk(live=False))

    def _missed(self) -> None:
        # Of what time that was nobody knows.
        for listener in self._let_in:
            listener.push(RESET)

    def _end_all(self) -> None:
        for listener in self._let_in:
            listener.end()

    def _abort_all(self) -> None:
        for listener in self._let_in:
            listener.abort()

    def _feed_ended(self, feeding: "asyncio.Task[None]") -> None:
        if not feeding.cancelled() and (bug := feeding.exception()) is not None:
            log.error("events are not heard any more", exc_info=bug)
            self._end_all()

    async def _receive(self, changes: Sequence[StatusChange]) -> None:
        for watcher in list(self._watchers):
            watcher(changes)
        if not self._listeners:
            return
        if all(isinstance(key, UUID) for key in self._listeners):
            changes = [change for change in changes if change.notification_id in self._listeners]
        try:
            events = await self._history.events(changes)
        except DatabaseUnavailable as away:
            log.warning("listeners have to come back: whose events they are is not known", extra={"error": str(away)})
            self._end_all()
            return
        self._hand_out(events)

    def _hand_out(self, events: Sequence[tuple[str, StatusEvent]]) -> None:
        for tenant, event in events:
            chunk: bytes | None = None
            for key in (event.notification_id, (tenant, event.user_id), tenant):
                for listener in self._listeners.get(key, ()):
                    if listener.wanted.includes(tenant, event):
                        chunk = chunk or status_chunk(event)
                        listener.push(chunk)


def _key(wanted: EventFilter) -> UUID | tuple[str, int] | str:
    if wanted.notification_id is not None:
        return wanted.notification_id
    return wanted.tenant if wanted.user_id is None else (wanted.tenant, wanted.user_id)
