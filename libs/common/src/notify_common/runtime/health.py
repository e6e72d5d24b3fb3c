"""`/livez`, `/readyz` and `/metrics` for consuming services. A service is ready if its queues are being consumed."""

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.asgi.types import Scope
from prometheus_client import CollectorRegistry, Gauge

from notify_common.runtime.metrics import exposition
from notify_common.version import VERSION


class ConsumedQueue(Protocol):
    """A queue whose consumer reports its state."""

    @property
    def queue(self) -> str:
        """The name of the queue."""

    @property
    def alive(self) -> bool:
        """True if the queue is being consumed, as far as this process knows."""

    async def problem(self) -> str | None:
        """Return why nothing is being consumed, or None if there is no problem."""


def health_app(
    queues: Sequence[ConsumedQueue],
    registry: CollectorRegistry,
    *,
    before_scrape: Callable[[], Awaitable[None]] | None = None,
) -> AsgiFastStream:
    """Return an ASGI app that reports on these queues; `before_scrape` updates metrics that need a query."""
    alive = Gauge("notify_consumer_up", "1 if this process consumes from the queue.", ["queue"], registry=registry)
    for each in queues:
        alive.labels(each.queue).set_function(partial(getattr, each, "alive"))

    @get
    async def livez(_: Scope) -> AsgiResponse:
        return _json(200, {"status": "alive"})

    @get
    async def readyz(_: Scope) -> AsgiResponse:
        problems = [problem for each in queues if (problem := await each.problem())]
        if problems:
            return _json(503, {"status": "not ready", "version": VERSION, "problems": problems})
        return _json(200, {"status": "ready", "version": VERSION, "consuming": [each.queue for each in queues]})

    @get
    async def metrics(scope: Scope) -> AsgiResponse:
        if before_scrape is not None:
            await before_scrape()
        accepted = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        content, content_type = exposition(registry, accepted)
        return AsgiResponse(content, 200, headers={"content-type": content_type})

    return AsgiFastStream(asgi_routes=[("/livez", livez), ("/readyz", readyz), ("/metrics", metrics)], logger=None)


def _json(status: int, body: dict[str, object]) -> AsgiResponse:
    return AsgiResponse(json.dumps(body).encode(), status, headers={"content-type": "application/json"})
