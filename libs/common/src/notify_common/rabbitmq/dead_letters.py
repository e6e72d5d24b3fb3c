"""Dead letters: messages that can never be handled, archived with the reason."""

import logging
import struct
from collections.abc import Mapping
from typing import Any, Protocol

from pamqp import encode

from notify_common.contracts import topology
from notify_common.contracts.messages import (
    DELIVERY_ID_HEADER,
    MAX_CHANGES_BYTES,
    NOTIFICATION_ID_HEADER,
    ROUND_HEADER,
)
from notify_common.contracts.trace_context import TRACEPARENT_HEADER, read_traceparent, trace_id
from notify_common.errors import PoisonMessage, PublishImpossible
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage

log = logging.getLogger(__name__)

REASON_HEADER = "dead_reason"
QUEUE_HEADER = "dead_queue"
# RabbitMQ writes this header when it dead-letters a message; it has one entry per queue, including retry queues:
# https://www.rabbitmq.com/docs/dlx#effects
DEATHS_HEADER = "x-death"
# RabbitMQ also routes a message by the keys in these headers. A sender may have written them, and must not choose where
# an operator requeues its message: https://www.rabbitmq.com/docs/sender-selected
ROUTING_HEADERS = ("CC", "BCC")
IDENTIFYING_HEADERS = (DELIVERY_ID_HEADER, NOTIFICATION_ID_HEADER, ROUND_HEADER, TRACEPARENT_HEADER)

# No service publishes a longer message, and RabbitMQ is configured to reject longer ones. It had no such limit before.
MAX_BODY_BYTES = MAX_CHANGES_BYTES
# All headers of a message are in one frame, of 128 KiB unless RabbitMQ is configured otherwise. RabbitMQ closes the
# connection of a publisher whose frame is longer.
MAX_HEADERS_BYTES = 16 * 1024
MAX_IDENTIFIER = 255  # characters


class ReceivedMessage(Protocol):
    """A received message: aio-pika's, or the senders' own `Message`."""

    body: Any
    headers: Mapping[str, Any]
    message_id: str | None


async def dead_letter_failed(
    publisher: ConfirmedPublisher, message: ReceivedMessage, error: Exception, *, queue: str
) -> bool:
    """Log why a message cannot be handled, and publish it as a dead letter; return True if it was published.

    If it was not, the caller can reject the message. RabbitMQ then dead-letters all of it, but without the reason,
    because it does not apply its limits to messages that it has already accepted.
    """
    fields = _log_fields(message, queue)
    if isinstance(error, PoisonMessage):
        reason = str(error)
        log.error("poison message", extra={**fields, "reason": reason})
    else:
        reason = f"bug: {type(error).__name__}"
        log.error("handler failed", extra=fields, exc_info=error)
    if len(message.body) > MAX_BODY_BYTES:
        log.error("the message is too long to be published with its reason", extra=fields)
        return False
    try:
        await dead_letter(publisher, message.body, queue=queue, reason=reason, headers=message.headers)
    except PublishImpossible:
        log.exception("cannot publish the dead letter with its reason", extra=fields)
        return False
    return True


def _log_fields(message: ReceivedMessage, queue: str) -> dict[str, object]:
    """Return log fields that identify a message by its headers, because its body may be unreadable."""
    identifying = _identifying(message.headers)
    ids = {name: identifying.get(name) for name in (DELIVERY_ID_HEADER, NOTIFICATION_ID_HEADER)}
    trace = trace_id(read_traceparent(message.headers.get(TRACEPARENT_HEADER)))
    return {"queue": queue, "message_id": message.message_id, "trace_id": trace, **ids}


async def dead_letter(
    publisher: ConfirmedPublisher, body: bytes, *, queue: str, reason: str, headers: Mapping[str, Any] | None = None
) -> None:
    """Publish a message that came from `queue` as a dead letter, and return once the broker has confirmed it.

    Raise `PublishImpossible` if the broker does not accept such a message.
    """
    dead_headers = {**original_headers(headers or {}), REASON_HEADER: reason, QUEUE_HEADER: queue}
    exchange = topology.dead_letter_exchange(queue)
    message = OutgoingMessage(exchange, "", body, dead_headers)
    await publisher.publish_until_confirmed([message], raise_if_impossible=True)


def original_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original publisher's headers, without those that dead-lettering added, and those that route.

    If they cannot be published again, return only those that identify the message.
    """
    left_out = (REASON_HEADER, QUEUE_HEADER, *ROUTING_HEADERS)
    original = {name: value for name, value in headers.items() if name not in left_out and not name.startswith("x-")}
    return original if _publishable(original) else _identifying(original)


def _publishable(headers: dict[str, Any]) -> bool:
    try:
        return len(encode.field_table(headers)) <= MAX_HEADERS_BYTES
    except (TypeError, ValueError, OverflowError, struct.error):  # pamqp decodes more than it encodes
        return False


def _identifying(headers: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: headers.get(name) for name in IDENTIFYING_HEADERS}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int) or (isinstance(value, str) and len(value) <= MAX_IDENTIFIER)
    }


def queue_where_it_died(headers: Mapping[str, Any]) -> str | None:
    """Return the queue in which the message died.

    RabbitMQ puts the last queue first. Only the first entry is believed, and before our own header: a sender can write
    headers, but not the entry of the queue from which RabbitMQ takes its message.
    """
    deaths: object = headers.get(DEATHS_HEADER)
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        return str(deaths[0].get("queue"))
    return str(headers[QUEUE_HEADER]) if QUEUE_HEADER in headers else None
