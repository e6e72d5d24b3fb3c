"""`/livez`, `/readyz` and `/metrics` of the services that consume: ready means that the consumers really consume."""

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.asgi.types import Scope
from prometheus_client import CollectorRegistry, Gauge

from notify_common.rabbitmq.consumer import Consumer
from notify_common.runtime.metrics import exposition
from notify_common.version import VERSION


def health_app(
    consumers: Sequence[Consumer],
    registry: CollectorRegistry,
    *,
    before_scrape: Callable[[], Awaitable[None]] | None = None,
) -> AsgiFastStream:
    """An ASGI app that answers for these consumers; `before_scrape` sets metrics that have to be asked for."""
    alive = Gauge("notify_consumer_up", "Whether the queue is consumed from.", ["queue"], registry=registry)
    for consumer in consumers:
        alive.labels(consumer.queue).set_function(partial(_alive, consumer))

    @get
    async def livez(_: Scope) -> AsgiResponse:
        return _json(200, {"status": "alive"})

    @get
    async def readyz(_: Scope) -> AsgiResponse:
        problems = [problem for consumer in consumers if (problem := await consumer.problem())]
        if problems:
            return _json(503, {"status": "not ready", "version": VERSION, "problems": problems})
        queues = [consumer.queue for consumer in consumers]
        return _json(200, {"status": "ready", "version": VERSION, "consuming": queues})

    @get
    async def metrics(scope: Scope) -> AsgiResponse:
        if before_scrape is not None:
            await before_scrape()
        accepted = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        content, content_type = exposition(registry, accepted)
        return AsgiResponse(content, 200, headers={"content-type": content_type})

    routes = [("/livez", livez), ("/readyz", readyz), ("/metrics", metrics)]
    return AsgiFastStream(asgi_routes=routes, logger=None)


def _alive(consumer: Consumer) -> float:
    return float(consumer.alive)


def _json(status: int, body: dict[str, object]) -> AsgiResponse:
    return AsgiResponse(json.dumps(body).encode(), status, headers={"content-type": "application/json"})
