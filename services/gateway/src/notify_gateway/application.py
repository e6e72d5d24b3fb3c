"""The composition root, which builds, connects, starts and stops the parts of the gateway."""

import asyncio
import logging
from datetime import timedelta
from functools import cached_property, partial

from notify_common.contracts import topology
from notify_common.rabbitmq.connection import create_broker
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.metrics import process_registry
from notify_common.runtime.networks import networks
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.engine import await_database
from notify_database.errors import DatabaseUnavailable

from notify_gateway.api_keys.look_up import ApiKeyLookUp
from notify_gateway.api_keys.shared_rate_limits import SharedRateLimits
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.api_keys.tenant_keys import TenantKeys
from notify_gateway.api_keys.upkeep import KeyUpkeep
from notify_gateway.console.overview import Overview
from notify_gateway.console.queue_statistics import QueueStatisticsClient
from notify_gateway.console.schemas import ConsoleLinks
from notify_gateway.database import Engines, TenantReads, TenantShare
from notify_gateway.deliveries.idle_channels import IdleChannels
from notify_gateway.deliveries.queries import DeliveryQueries
from notify_gateway.deliveries.retries import PACE, DeliveryRetries
from notify_gateway.deliveries.retry_jobs import RetryJobs
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.events.history import EventHistory
from notify_gateway.events.hub import EventHub
from notify_gateway.health import MetricsExposition, Readiness
from notify_gateway.http.authentication import Authenticator
from notify_gateway.http.client_address import ClientAddresses
from notify_gateway.http.rate_limit import RequestRateLimiter
from notify_gateway.legacy.post import LEGACY
from notify_gateway.maintenance import DatabaseWatch, run_maintenance
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.notifications.cancel import NotificationCanceller
from notify_gateway.notifications.endpoint import V1, NotificationEndpoint
from notify_gateway.notifications.intake import NotificationIntake
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore
from notify_gateway.queue_members import QueueMembers
from notify_gateway.settings import Auth, GatewaySettings
from notify_gateway.users.channels import UserChannels

log = logging.getLogger(__name__)

ROLE = "gateway"
RELAY_STOP_TIMEOUT = 10.0  # seconds; another relay publishes what is left after that
MAINTENANCE_STOP_TIMEOUT = 1.0  # seconds


class Gateway:
    """All parts of a gateway process. `work` runs its background tasks."""

    def __init__(
        self,
        settings: GatewaySettings,
        tracing: Tracing = UNTRACED,
        *,
        relay_class: type[OutboxRelay] = OutboxRelay,
        publisher_class: type[ConfirmedPublisher] = ConfirmedPublisher,
        events: EventPublisher | None = None,
    ) -> None:
        self.settings = settings
        self._engines = Engines(settings, settings.postgres_pool_size)
        self._share = TenantShare(self._engines.reads_per_tenant)
        self._reads = TenantReads(self._engines.reads, self._share)
        self._broker, registry = create_broker(settings, ROLE), process_registry()
        self._events = events or EventPublisher(settings, ROLE)
        self.metrics = GatewayMetrics(registry)

        self._topology = DeclaredTopology(settings, topology.gateway(), [topology.EVENTS], role=ROLE)
        self.relay = relay_class(
            self._broker,
            partial(publisher_class, restore_topology=self._topology.restore),
            OutboxStore(self._engines.relay),
            self._events,
            self.metrics,
            tracing,
            declared=self._topology,
        )
        self.intake = NotificationIntake(
            self._engines.intake,
            self.relay,
            max_waiting=settings.max_waiting_requests,
            real_channels=settings.real_channels(),
            metrics=self.metrics,
            publish_changes=self._events.publish,
            tracing=tracing,
        )
        self._history = EventHistory(self._engines.control, self._reads)
        self.event_hub = EventHub(settings, ROLE, self._history)
        self.api_keys = ApiKeyStore(self._engines.control)
        self.key_look_up = ApiKeyLookUp(self.api_keys.principals)
        self._rate_limiter = RequestRateLimiter(settings.rate_limit)
        self.authenticator = self._create_authenticator()
        self.notification_endpoints = self._create_notification_endpoints(tracing)
        self._queues = QueueStatisticsClient(settings, settings.management_urls())
        self._overview = Overview(
            self._reads, OutboxStore(self._engines.reads), self.relay, self.event_hub, self._queues
        )
        self._exposition = MetricsExposition(
            registry, self.metrics, OutboxStore(self._engines.control), self.relay, self._topology, self.event_hub
        )

    def _create_notification_endpoints(self, tracing: Tracing) -> list[NotificationEndpoint]:
        return [NotificationEndpoint(self.authenticator, self.intake, tracing, version) for version in (V1, LEGACY)]

    def _create_authenticator(self) -> Authenticator:
        return Authenticator(
            self.key_look_up,
            self._rate_limiter,
            ClientAddresses(networks(self.settings.trusted_proxies or "")),
            self.metrics.count_authentication_failure,
            enabled=self.settings.auth is Auth.ON,
        )

    @cached_property
    def readiness(self) -> Readiness:
        """What `/readyz` reports."""
        return Readiness(self._engines.control, self.relay, self._topology)

    @cached_property
    def services(self) -> list[object]:
        """The services that routes depend on."""
        ui, writes, share = self.settings.rabbitmq_ui_url, self._engines.reads, self._share
        return [
            self.authenticator,
            NotificationQueries(self._reads),
            NotificationCanceller(writes, share, self._events.publish),
            DeliveryQueries(self._reads),
            DeliveryRetries(writes, self._events.publish, share=share),
            RetryJobs(writes, share, self._reads),
            UserChannels(writes, share, self._reads),
            TenantKeys(writes),
            self._history,
            self.event_hub,
            self._overview,
            ConsoleLinks(rabbitmq=None if ui is None else str(ui), trace=self.settings.trace_url),
            self.readiness,
            self._exposition,
        ]

    async def work(self, stop: asyncio.Event) -> None:
        """Run the background tasks until `stop`, then commit the requests that are still waiting.

        If a background task fails, its error is raised at once, even while requests arrive: a gateway whose relay has
        died must not go on accepting notifications.
        """
        async with self._events.running() as publishing_events:
            stopping = asyncio.create_task(stop.wait())
            relaying = asyncio.create_task(self._relay(stop))
            maintaining = asyncio.create_task(self._maintain(stop))
            finishing = {maintaining}
            if self.settings.auth is Auth.ON:
                finishing.add(asyncio.create_task(self._report_key_usage(stopping)))
            background = [relaying, *finishing, asyncio.create_task(self._topology.watch())]
            if (nodes := len(self.settings.rabbitmq_nodes())) > 1:
                members = QueueMembers(self._queues, nodes, self.metrics.queues_lacking_members.set)
                background.append(asyncio.create_task(members.watch()))
            watched = [publishing_events, *background]
            try:
                await asyncio.wait({stopping, *watched}, return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    await self.intake.drained()
                    await asyncio.wait({relaying}, timeout=RELAY_STOP_TIMEOUT if self.relay.connected else 0)
                    await asyncio.wait(finishing, timeout=MAINTENANCE_STOP_TIMEOUT)
            finally:
                ended = [task for task in watched if task.done()]
                for task in (stopping, *background):
                    task.cancel()
                await asyncio.wait({stopping, *background})
            for task in ended:
                task.result()
            if not stop.is_set():
                raise RuntimeError("a background task of the gateway has ended")

    async def aclose(self) -> None:
        """Close all connections. No request may be in progress any more."""
        await self._overview.aclose()
        await self._queues.aclose()
        await self._broker.stop()
        await self._engines.dispose()

    async def _relay(self, stop: asyncio.Event) -> None:
        await await_database(self._engines.control)
        await self._topology.declare()
        await self.relay.run(stop)

    async def _report_key_usage(self, stopping: "asyncio.Task[bool]") -> None:
        # A long statement of maintenance must not delay the reports, because gateways without reports count alone.
        engine = self._engines.control
        await await_database(engine)
        shared = SharedRateLimits(engine, self._rate_limiter)
        await KeyUpkeep(shared, ApiKeyStore(engine), self.key_look_up).run(stopping)

    async def _maintain(self, stop: asyncio.Event) -> None:
        await await_database(self._engines.control)
        if (bootstrap_key := self.settings.bootstrap_api_key) is not None:
            token = bootstrap_key.get_secret_value()
            outage = Outage(log, "the bootstrap API key cannot be stored")
            await outage.retry(lambda: self.api_keys.ensure_bootstrap_key(token), DatabaseUnavailable)
        engine, publish_changes = self._engines.maintenance, self._events.publish
        retries = DeliveryRetries(engine, publish_changes, pace=PACE)
        silence = timedelta(seconds=self.settings.repair_after)
        idle_channels = IdleChannels(lambda: self.relay.connection)
        stranded = StrandedDeliveries(
            engine, publish_changes, self.metrics.repaired.inc, idle_channels, silence=silence
        )
        watch = DatabaseWatch(self._engines.control, self.metrics.clock_offset.set, self.metrics.partitions_ahead.set)
        await run_maintenance(engine, retries, stranded, watch, stop)
