"""`/livez` and `/readyz` of the services that consume: ready means that the consumers really consume."""

import asyncio
import json
from collections.abc import Sequence

from aiormq.exceptions import AMQPError
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.asgi.types import Scope
from faststream.rabbit import RabbitBroker, RabbitQueue

from notify_common.rabbitmq import BROKER_ERRORS

CHECK_TIMEOUT = 2.0  # seconds


def health_app(broker: RabbitBroker, queues: Sequence[RabbitQueue]) -> AsgiFastStream:
    """An ASGI app that answers for the consumers of `queues`. It does not start the broker."""

    @get
    async def livez(_: Scope) -> AsgiResponse:
        return _json(200, {"status": "alive"})

    @get
    async def readyz(_: Scope) -> AsgiResponse:
        problems = [problem for queue in queues if (problem := await consumer_problem(broker, queue))]
        if problems:
            return _json(503, {"status": "not ready", "problems": problems})
        return _json(200, {"status": "ready", "consuming": [queue.name for queue in queues]})

    return AsgiFastStream(asgi_routes=[("/livez", livez), ("/readyz", readyz)], logger=None)


async def consumer_problem(broker: RabbitBroker, queue: RabbitQueue) -> str | None:
    """Why nothing is consumed from `queue`, or None where it is.

    An open connection proves nothing: the consumer's own channel must answer, hold its consumer, and the broker must
    count it.
    """
    if not broker.running:
        return f"{queue.name}: not connected to RabbitMQ"
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            # The object that the subscriber declared and consumes with.
            subscribed = await broker.declare_queue(queue)
            channel = await subscribed.channel.get_underlay_channel()
            if not getattr(channel, "consumers", None):  # aiormq's, not in its abstract class
                return f"{queue.name}: the consumer was cancelled"
            declared = await channel.queue_declare(queue.name, passive=True)
    except (*BROKER_ERRORS, AMQPError) as error:
        return f"{queue.name}: RabbitMQ does not answer ({type(error).__name__})"
    return None if declared.consumer_count else f"{queue.name}: RabbitMQ knows no consumer"


def _json(status: int, body: dict[str, object]) -> AsgiResponse:
    return AsgiResponse(json.dumps(body).encode(), status, headers={"content-type": "application/json"})
