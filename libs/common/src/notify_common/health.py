"""`/livez` and `/readyz` of the services that consume: ready means that the consumers really consume."""

import json
from collections.abc import Sequence

from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.asgi.types import Scope

from notify_common.consumer import Consumer


def health_app(consumers: Sequence[Consumer]) -> AsgiFastStream:
    """An ASGI app that answers for these consumers."""

    @get
    async def livez(_: Scope) -> AsgiResponse:
        return _json(200, {"status": "alive"})

    @get
    async def readyz(_: Scope) -> AsgiResponse:
        problems = [problem for consumer in consumers if (problem := await consumer.problem())]
        if problems:
            return _json(503, {"status": "not ready", "problems": problems})
        return _json(200, {"status": "ready", "consuming": [consumer.queue for consumer in consumers]})

    return AsgiFastStream(asgi_routes=[("/livez", livez), ("/readyz", readyz)], logger=None)


def _json(status: int, body: dict[str, object]) -> AsgiResponse:
    return AsgiResponse(json.dumps(body).encode(), status, headers={"content-type": "application/json"})
