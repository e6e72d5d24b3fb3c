"""Health and metrics: `/livez` and `/readyz` on both ports, `/metrics` on the health port only."""

import asyncio
import math
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from notify_common.errors import StartupError
from notify_common.runtime.metrics import exposition
from notify_common.version import VERSION
from notify_database.engine import database_problem
from notify_database.errors import DatabaseUnavailable, DataRejected
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.events.hub import EventHub
from notify_gateway.http.dependencies import provided
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore

TIMEOUT = 2.0  # seconds
CHECK_INTERVAL = 1.0  # seconds


class Readiness:
    """Checks PostgreSQL at most once a second: `/readyz` is public and must not be a way to keep it busy."""

    def __init__(self, engine: AsyncEngine, relay: OutboxRelay) -> None:
        self.relay = relay
        self._engine = engine
        self._checking = asyncio.Lock()
        self._next_check = 0.0
        self._problem: str | None = None

    async def database_problem(self) -> str | None:
        """Return why PostgreSQL cannot be used, or None."""
        async with self._checking:
            if time.monotonic() >= self._next_check:
                self._problem = await self._check_database()
                self._next_check = time.monotonic() + CHECK_INTERVAL
            return self._problem

    async def _check_database(self) -> str | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await database_problem(self._engine)
        except TimeoutError:
            return "does not answer"
        except StartupError as error:
            return str(error)


class MetricsExposition:
    """The metrics of this process, with the state of the outbox at the time of the scrape."""

    def __init__(
        self,
        registry: CollectorRegistry,
        metrics: GatewayMetrics,
        outbox: OutboxStore,
        relay: OutboxRelay,
        hub: EventHub,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._outbox = outbox
        self._relay = relay
        self._hub = hub

    async def render(self, accepted: str) -> tuple[bytes, str]:
        """Return all metrics and their content type; those of the outbox are NaN if PostgreSQL does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT):
                rows, oldest = await self._outbox.backlog()
        except (TimeoutError, DatabaseUnavailable, DataRejected):
            rows, oldest = math.nan, math.nan
        self._metrics.outbox_rows.set(rows)
        self._metrics.outbox_oldest.set(oldest)
        self._metrics.relay_connected.set(self._relay.connected)
        self._metrics.listeners.set(self._hub.count)
        return exposition(self._registry, accepted)


health_router = APIRouter(tags=["health"])
metrics_router = APIRouter()


@health_router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@health_router.get("/readyz", responses={503: {"description": "PostgreSQL can not be used."}})
async def readyz(response: Response, readiness: Annotated[Readiness, Depends(provided(Readiness))]) -> dict[str, str]:
    """Whether notifications are accepted. They are with RabbitMQ away: they wait in the outbox then."""
    postgresql = await readiness.database_problem()
    if postgresql is not None:
        response.status_code = 503
    connected = readiness.relay.connected
    return {
        "status": "ready" if postgresql is None else "not ready",
        "version": VERSION,
        "postgresql": postgresql or "ready",
        "rabbitmq": "ready" if connected else "not reachable: accepted notifications wait in the outbox",
    }


@metrics_router.get("/metrics")
async def metrics(
    request: Request, exposition: Annotated[MetricsExposition, Depends(provided(MetricsExposition))]
) -> Response:
    """Metrics for Prometheus."""
    content, content_type = await exposition.render(request.headers.get("Accept", ""))
    return Response(content, media_type=content_type)
