"""The gateway's parts and their life: what is built, in which order it starts and ends."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from uuid import UUID

from notify_common import topology
from notify_common.channels import Channel
from notify_common.confirmed_publisher import ConfirmedPublisher
from notify_common.events import EventPublisher
from notify_common.lasting_fault import LastingFault
from notify_common.metrics import exposition, process_registry
from notify_common.process import Refused
from notify_common.rabbitmq import create_broker, prepare_topology
from notify_common.tracing import UNTRACED, Tracing
from notify_database.engine import (
    ROWS_BY_KEY,
    DatabaseAway,
    StatementRefused,
    await_database,
    create_engine,
    database_problem,
)

from notify_gateway.access import Door, RateLimit
from notify_gateway.api_keys import ApiKeys
from notify_gateway.cancellation import cancel
from notify_gateway.delivery_retries import DeliveryRetries
from notify_gateway.event_history import EventHistory, Wanted
from notify_gateway.event_stream import EventStream
from notify_gateway.housekeeping import keep_house
from notify_gateway.intake import NotificationIntake
from notify_gateway.live_events import LiveEvents
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.notification_queries import NotificationQueries
from notify_gateway.outbox import Outbox
from notify_gateway.outbox_relay import OutboxRelay
from notify_gateway.overview import Overview
from notify_gateway.queue_figures import QueueFigures
from notify_gateway.schemas import OverviewView
from notify_gateway.settings import Auth, GatewaySettings
from notify_gateway.user_channels import UserChannels

log = logging.getLogger(__name__)

ROLE = "gateway"
READINESS_TIMEOUT = 2.0  # seconds
READINESS_INTERVAL = 1.0  # seconds
RELAY_CONNECTIONS = 1  # it does one thing after the other
RELAY_STOP_TIMEOUT = 10.0  # seconds; what is not published by then is left to the next relay


class Gateway:
    """Intake, queries and relay on one engine and one broker connection."""

    def __init__(self, settings: GatewaySettings, tracing: Tracing = UNTRACED) -> None:
        self._settings = settings
        self.tracing = tracing
        self._registry = process_registry()
        self.metrics = GatewayMetrics(self._registry)
        self.health_port = settings.health_port
        self._engine = create_engine(settings, pool_size=settings.postgres_pool_size - RELAY_CONNECTIONS)
        self._relay_engine = create_engine(settings, pool_size=RELAY_CONNECTIONS, planner=ROWS_BY_KEY)
        self._broker = create_broker(settings, ROLE)
        self._events = EventPublisher(settings, ROLE)
        self.relay = OutboxRelay(
            self._broker,
            ConfirmedPublisher(self._broker),
            Outbox(self._relay_engine),
            self._events,
            self.metrics,
            tracing,
        )
        self.intake = NotificationIntake(
            self._engine,
            self.relay,
            max_waiting=settings.max_waiting_requests,
            real_channels=settings.real_channels(),
            metrics=self.metrics,
            tell=self._events.tell,
            tracing=tracing,
        )
        self._outbox = Outbox(self._engine)  # for who looks at it; the relay has its own connection
        self.queries = NotificationQueries(self._engine)
        self.retries = DeliveryRetries(self._engine)
        self.user_channels = UserChannels(self._engine)
        self._history = EventHistory(self._engine)
        self.live = LiveEvents(settings, ROLE, self._history)
        management = settings.rabbitmq_management_url
        self._queues = QueueFigures(settings, None if management is None else str(management))
        self._overview = Overview(self._engine, self._outbox, self.live, self._queues)
        self.links = settings.links()
        self.keys = ApiKeys(self._engine)
        self.door = Door(self.keys, RateLimit(settings.rate_limit), closed=settings.auth is Auth.ON)
        # `/readyz` is open to everybody: it must not be a way to keep the database busy.
        self._asking = asyncio.Lock()
        self._ask_again_at = 0.0
        self._problem: str | None = None

    async def cancel(self, notification_id: UUID) -> None:
        """Cancel what no process has leased."""
        changes = await cancel(self._engine, notification_id)
        log.info("cancelled", extra={"notification_id": str(notification_id), "deliveries": len(changes)})
        self._events.tell(changes)

    async def retry(self, tenant: str, delivery_id: UUID) -> bool:
        """Put a failed delivery back; say whether it was one."""
        changes = await self.retries.retry(tenant, delivery_id)
        for change in changes:
            log.info("put back", extra=change.model_dump(mode="json", exclude={"status"}))
        self._events.tell(changes)
        return bool(changes)

    def listen(self, wanted: Wanted, since: datetime | None, admitted: Callable[[], Awaitable[bool]]) -> EventStream:
        """The changes that are wanted, from those after `since` on, while who asks for them is `admitted`."""
        return EventStream(self.live, self._history, wanted, since, admitted)

    async def overview(self) -> OverviewView:
        """What happens, for who looks at all of it."""
        return await self._overview.look(relay_connected=self.relay.connected)

    async def exposition(self, accepted: str) -> tuple[bytes, str]:
        """All metrics; those of the outbox are as PostgreSQL has them now, or NaN where it does not answer."""
        try:
            async with asyncio.timeout(READINESS_TIMEOUT):
                rows, oldest = await self._outbox.backlog()
        except (TimeoutError, DatabaseAway, StatementRefused):
            rows, oldest = math.nan, math.nan
        self.metrics.outbox_rows.set(rows)
        self.metrics.outbox_oldest.set(oldest)
        self.metrics.relay_connected.set(self.relay.connected)
        self.metrics.listeners.set(self.live.count)
        return exposition(self._registry, accepted)

    async def database_problem(self) -> str | None:
        """Why PostgreSQL can not be used, or None: asked at most once a second, however many want to know."""
        async with self._asking:
            if time.monotonic() >= self._ask_again_at:
                self._problem = await self._ask_database()
                self._ask_again_at = time.monotonic() + READINESS_INTERVAL
            return self._problem

    async def _ask_database(self) -> str | None:
        try:
            async with asyncio.timeout(READINESS_TIMEOUT):
                return await database_problem(self._engine)
        except TimeoutError:
            return "does not answer"
        except Refused as refusal:
            return str(refusal)

    async def work(self, stop: asyncio.Event) -> None:
        """Relay until `stop`, then finish what was accepted. Either server may be away when this begins."""
        async with self._events.publishing():
            stopping = asyncio.create_task(stop.wait())
            relaying = asyncio.create_task(self._relay(stop))
            keeping = asyncio.create_task(self._keep_house(stop))
            await asyncio.wait({stopping, relaying, keeping}, return_when=asyncio.FIRST_COMPLETED)
            await self.intake.drained()
            for task, patience in ((relaying, RELAY_STOP_TIMEOUT if self.relay.connected else 0), (keeping, 1)):
                await asyncio.wait({task}, timeout=patience)
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
                elif task.exception() is not None or not stop.is_set():
                    await task
        await self._overview.aclose()
        await self._queues.aclose()
        await self._broker.stop()
        await self._relay_engine.dispose()
        await self._engine.dispose()

    async def _keep_house(self, stop: asyncio.Event) -> None:
        await await_database(self._engine)
        bootstrap, fault = self._settings.bootstrap_api_key, LastingFault(log, "BOOTSTRAP_API_KEY can not be stored")
        while bootstrap is not None:
            try:
                await self.keys.ensure(bootstrap.get_secret_value())
            except DatabaseAway as away:
                await asyncio.sleep(fault.occurred(away))
            else:
                fault.over()
                break
        days = self._settings.retention_days
        retention = timedelta(days=days) if days else None
        await keep_house(self._engine, self.retries, self._events.tell, stop, retention=retention)

    async def _relay(self, stop: asyncio.Event) -> None:
        await await_database(self._engine)
        bindings = [*topology.dead_letters(), *(topology.deliveries(channel) for channel in Channel)]
        await prepare_topology(self._settings, bindings, [topology.EVENTS], role=ROLE)
        await self.relay.run(stop)
