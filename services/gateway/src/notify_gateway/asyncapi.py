"""The messages that cross RabbitMQ as an AsyncAPI 3 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0).

Made of the models and of the topology that the services run with. FastStream's generator would describe subscribers and
publishers that we do not have, with a delivery mode and a correlation id that our messages do not have.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from faststream.rabbit import RabbitExchange
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import (
    DELIVERY_ID_HEADER,
    NOTIFICATION_ID_HEADER,
    ROUND_HEADER,
    DeliveryRequested,
    DeliveryResults,
    DeliveryStatus,
    StatusChanges,
)
from notify_common.contracts.trace_context import TRACEPARENT_HEADER
from notify_common.version import VERSION
from pydantic.json_schema import models_json_schema

DELIVERY_HEADERS = {
    DELIVERY_ID_HEADER: {"type": "string", "format": "uuid"},
    NOTIFICATION_ID_HEADER: {"type": "string", "format": "uuid"},
    ROUND_HEADER: {"type": "integer"},
    TRACEPARENT_HEADER: {"type": "string", "description": "W3C Trace Context; where the delivery belongs to a trace."},
}


@dataclass(frozen=True, slots=True)
class MessageFlow:
    """The messages of one exchange with one routing key."""

    name: str
    exchange: RabbitExchange
    routing_key: str
    message: type[DeliveryRequested | DeliveryResults | StatusChanges]
    sent_by: str
    received_by: str
    persistent: bool = True


def _message_flows() -> Iterable[MessageFlow]:
    for channel in Channel:
        sender = f"{channel}_sender"
        yield MessageFlow(f"{channel}", topology.NOTIFICATIONS, channel, DeliveryRequested, "gateway", sender)
        yield MessageFlow(
            f"{channel}_retry", topology.retry_exchange(channel), "{delay_ms}", DeliveryRequested, sender, sender
        )
    senders = ", ".join(f"{channel}_sender" for channel in Channel)
    yield MessageFlow(
        "results", topology.RESULTS, topology.RESULTS_ROUTING_KEY, DeliveryResults, senders, "status_writer"
    )
    subscribers = "whoever listens, such as GET /api/events"
    writers = "status_writer, gateway"
    yield MessageFlow(
        "events", topology.EVENTS, "{channel}.{status}", StatusChanges, writers, subscribers, persistent=False
    )


@cache
def asyncapi_document() -> dict[str, Any]:
    """The document, as JSON."""
    flows = list(_message_flows())
    models = sorted({each.message for each in flows}, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Notification service",
            "version": VERSION,
            "description": "What crosses RabbitMQ, at least once. Fields are added with defaults and never renamed.",
        },
        "defaultContentType": "application/json",
        "servers": {"rabbitmq": {"host": "localhost:5672", "protocol": "amqp", "protocolVersion": "0.9.1"}},
        "channels": {each.name: _channel(each) for each in flows},
        "operations": {
            f"{action}_{each.name}": _operation(action, each) for each in flows for action in ("send", "receive")
        },
        "components": {
            "schemas": schemas["$defs"],
            "messages": {model.__name__: _message(model) for model in models},
        },
    }


def _channel(flow: MessageFlow) -> dict[str, Any]:
    exchange = flow.exchange
    parameters = _parameters(flow)
    return {
        "address": flow.routing_key,
        "messages": {flow.message.__name__: {"$ref": f"#/components/messages/{flow.message.__name__}"}},
        **({"parameters": parameters} if parameters else {}),
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange.name, "type": exchange.type.value, "durable": exchange.durable},
                "bindingVersion": "0.3.0",
            }
        },
    }


def _parameters(flow: MessageFlow) -> Mapping[str, Any]:
    known = {
        "delay_ms": {"description": "Milliseconds that the message waits: a rung of the sender's retry ladder."},
        "channel": {"enum": [channel.value for channel in Channel]},
        "status": {"enum": [status.value for status in DeliveryStatus]},
    }
    return {name: parameter for name, parameter in known.items() if f"{{{name}}}" in flow.routing_key}


def _operation(action: str, flow: MessageFlow) -> dict[str, Any]:
    channel = f"#/channels/{flow.name}"
    return {
        "action": action,
        "channel": {"$ref": channel},
        "summary": f"By {flow.sent_by if action == 'send' else flow.received_by}.",
        "messages": [{"$ref": f"{channel}/messages/{flow.message.__name__}"}],
        "bindings": {
            "amqp": {
                **({"deliveryMode": 2 if flow.persistent else 1} if action == "send" else {"ack": True}),
                "bindingVersion": "0.3.0",
            }
        },
    }


def _message(model: type[DeliveryRequested | DeliveryResults | StatusChanges]) -> dict[str, Any]:
    headers = {"headers": {"type": "object", "properties": DELIVERY_HEADERS}} if model is DeliveryRequested else {}
    return {
        "name": model.__name__,
        "summary": model.__doc__,
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        **headers,
    }
