"""Dead letters: messages that can never be handled, kept in `notifications.dead` with the reason."""

from collections.abc import Mapping
from typing import Any

from notify_common.contracts import topology
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage

REASON_HEADER = "dead_reason"
QUEUE_HEADER = "dead_queue"
# Written by RabbitMQ when it dead-letters by itself, one entry per queue (a retry queue is one too):
# https://www.rabbitmq.com/docs/dlx#effects
DEATHS_HEADER = "x-death"


async def bury(
    publisher: ConfirmedPublisher, body: bytes, *, queue: str, reason: str, headers: Mapping[str, Any] | None = None
) -> None:
    """Return once the dead letters have the message, which came from `queue`."""
    told = {**original_headers(headers or {}), REASON_HEADER: reason, QUEUE_HEADER: queue}
    await publisher.publish_until_confirmed([OutgoingMessage(topology.DEAD, "", body, told)])


def original_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """What the publisher had given, without what RabbitMQ and a death have added."""
    ours = (REASON_HEADER, QUEUE_HEADER)
    return {name: value for name, value in headers.items() if name not in ours and not name.startswith("x-")}


def queues_of_death(headers: Mapping[str, Any]) -> set[str]:
    """Where the message was found to be dead, and where else it has waited."""
    deaths = headers.get(DEATHS_HEADER) or []
    queues = {str(death.get("queue")) for death in deaths}
    return queues | {str(headers[QUEUE_HEADER])} if QUEUE_HEADER in headers else queues
