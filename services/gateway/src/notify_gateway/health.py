"""Health checks and metrics: `/livez` and `/readyz` on both ports, `/metrics` on the health port only."""

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from notify_common.errors import StartupError
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.runtime.metrics import exposition
from notify_common.runtime.outage import Outage
from notify_common.version import VERSION
from notify_database.engine import database_problem
from notify_database.errors import DatabaseUnavailable, DataRejected
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.events.hub import EventHub
from notify_gateway.http.dependencies import provided
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import Backlog, OutboxStore

log = logging.getLogger(__name__)

TIMEOUT = 2.0  # seconds
CHECK_INTERVAL = 1.0  # seconds


class Readiness:
    """Checks PostgreSQL at most once a second, so that requests to the public `/readyz` cannot overload it."""

    def __init__(self, engine: AsyncEngine, relay: OutboxRelay, topology: DeclaredTopology) -> None:
        self._engine = engine
        self._relay = relay
        self._topology = topology
        self._checking = asyncio.Lock()
        self._next_check = 0.0
        self._problem: str | None = None
        self._outage = Outage(log, "PostgreSQL cannot be used")
        self._draining = False

    def drain(self) -> None:
        """Report from now on that the gateway is not ready, so that load balancers send no more requests to it."""
        self._draining = True

    async def report(self) -> tuple[bool, dict[str, str]]:
        """Return whether the gateway is ready, and the body of `/readyz`."""
        # The state of PostgreSQL no longer matters then, and must not delay the response.
        postgresql = None if self._draining else await self.database_problem()
        ready = postgresql is None and not self._draining
        return ready, {
            "status": "draining" if self._draining else "ready" if ready else "not ready",
            "version": VERSION,
            "postgresql": "not checked" if self._draining else postgresql or "ready",
            "rabbitmq": self.rabbitmq,
        }

    @property
    def rabbitmq(self) -> str:
        """The state of RabbitMQ as the relay sees it."""
        if not self._relay.connected:
            return "unavailable: accepted notifications wait in the outbox"
        for problem, names in (
            ("different arguments than expected", self._topology.mismatches),
            ("missing", self._topology.missing),
        ):
            if names:
                return f"{problem}: {', '.join(sorted(names))}; its deliveries wait in the outbox"
        return "ready"

    async def database_problem(self) -> str | None:
        """Return why PostgreSQL cannot be used, or None if it can be used."""
        if time.monotonic() < self._next_check:
            return self._problem  # the lock lets one request pass per turn of the event loop, and many may be waiting
        async with self._checking:
            if time.monotonic() >= self._next_check:
                self._problem = await self._check_database()
                self._next_check = time.monotonic() + CHECK_INTERVAL
            return self._problem

    async def _check_database(self) -> str | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                problem = await database_problem(self._engine)
        except TimeoutError:
            return "does not respond"
        except StartupError as error:
            # The error quotes PostgreSQL, which names the user and the database.
            self._outage.failed(error)
            return "cannot be used; the log says why"
        if problem is None:
            self._outage.ended()
        return problem


@dataclass
class MetricsExposition:
    """Renders the metrics of this process, with the state of the outbox at the time of the scrape.

    Any number of scrapes at a time take one connection to PostgreSQL, because the look-ups of API keys share those, and
    each leaves the event loop to other requests before the next one is rendered.
    """

    registry: CollectorRegistry
    metrics: GatewayMetrics
    outbox: OutboxStore
    relay: OutboxRelay
    topology: DeclaredTopology
    hub: EventHub
    _update: "asyncio.Task[None] | None" = field(default=None, init=False)
    _rendering: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def render(self, accepted: str) -> tuple[bytes, str]:
        """Return all metrics and their content type; the outbox metrics are NaN if PostgreSQL does not respond."""
        if self._update is None or self._update.done():
            self._update = asyncio.create_task(self._update_metrics())
        # A scrape that is cancelled must not cancel the update for the others.
        await asyncio.shield(self._update)
        async with self._rendering:
            await asyncio.sleep(0)
            return exposition(self.registry, accepted)

    async def _update_metrics(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                backlog = await self.outbox.backlog()
        except (TimeoutError, DatabaseUnavailable, DataRejected):
            backlog = Backlog(math.nan, math.nan, math.nan)
        self.metrics.outbox_rows.set(backlog.rows)
        self.metrics.outbox_oldest.set(backlog.oldest)
        self.metrics.outbox_unknown_channel_rows.set(backlog.unknown)
        self.metrics.relay_connected.set(self.relay.connected)
        self.metrics.topology_mismatches.set(len(self.topology.mismatches))
        self.metrics.subscribers.set(self.hub.count)


PUBLIC: dict[str, Any] = {"security": []}  # of the OpenAPI document: these routes need no key
health_router = APIRouter(tags=["health"])
metrics_router = APIRouter()


@health_router.get("/livez", openapi_extra=PUBLIC)
async def livez() -> dict[str, str]:
    """Check that the process responds."""
    return {"status": "alive"}


@health_router.get(
    "/readyz",
    openapi_extra=PUBLIC,
    responses={503: {"description": "PostgreSQL is unavailable, or the gateway is stopping."}},
)
async def readyz(response: Response, readiness: Annotated[Readiness, Depends(provided(Readiness))]) -> dict[str, str]:
    """Check that the gateway can accept notifications.

    Only PostgreSQL is required. While RabbitMQ is unavailable, accepted notifications wait in the outbox. A gateway
    that is about to stop is not ready, although it still answers requests.
    """
    ready, report = await readiness.report()
    if not ready:
        response.status_code = 503
    return report


@metrics_router.get("/metrics")
async def metrics(
    request: Request, exposition: Annotated[MetricsExposition, Depends(provided(MetricsExposition))]
) -> Response:
    """Return the metrics in the Prometheus format that the client accepts."""
    content, content_type = await exposition.render(request.headers.get("Accept", ""))
    return Response(content, media_type=content_type)
