"""Describe the messages sent through RabbitMQ in an AsyncAPI 3 document.

The document is built from the models and the topology that the services use. FastStream's own generator would
not help, because it describes only FastStream subscribers and publishers, and we define none.

Specification: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from faststream.rabbit import RabbitExchange
from notify_common.contracts import messages, topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.trace_context import TRACEPARENT_HEADER
from notify_common.version import VERSION
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

DELIVERY_HEADERS = {
    messages.DELIVERY_ID_HEADER: {"type": "string", "format": "uuid"},
    messages.NOTIFICATION_ID_HEADER: {"type": "string", "format": "uuid"},
    messages.ROUND_HEADER: {"type": "integer"},
    TRACEPARENT_HEADER: {"type": "string", "description": "W3C Trace Context, if the delivery is traced."},
}
PARAMETERS: dict[str, Any] = {
    "delay_ms": {"description": "The number of milliseconds that the message waits in the retry queue."},
    "channel": {"enum": [channel.value for channel in Channel]},
    "status": {"enum": [status.value for status in messages.DeliveryStatus]},
}


@dataclass(frozen=True, slots=True)
class MessageFlow:
    """The messages that are published to one exchange with the same routing key."""

    name: str
    exchange: RabbitExchange
    routing_key: str
    message: type[BaseModel]
    sent_by: str
    received_by: str
    persistent: bool = True


def _message_flows() -> Iterable[MessageFlow]:
    request = messages.DeliveryRequested
    for channel in Channel:
        sender, retries = f"{channel}_sender", topology.retry_exchange(channel)
        yield MessageFlow(f"{channel}", topology.NOTIFICATIONS, channel, request, "gateway", sender)
        yield MessageFlow(f"{channel}_retry", retries, "{delay_ms}", request, sender, sender)
        to, results = topology.results(channel), messages.DeliveryResults
        yield MessageFlow(f"{channel}_results", to.exchange, to.routing_key, results, sender, "status_writer")
    key, subscribers = "{channel}.{status}", "any subscriber, such as GET /v1/events"
    publishers = "status_writer, gateway"
    yield MessageFlow("events", topology.EVENTS, key, messages.StatusChanges, publishers, subscribers, persistent=False)


@cache
def asyncapi_document() -> dict[str, Any]:
    """Return the document as a JSON object."""
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
            "description": "The messages between the services. New fields have defaults, and no field is ever renamed.",
            "contact": {"name": "The operators of this installation"},
            "license": {"name": "MIT", "url": "https://opensource.org/license/mit"},
            "tags": [{"name": "messages", "description": "What the services tell each other."}],
        },
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "security": [{"$ref": "#/components/securitySchemes/user"}],
            }
        },
        "channels": {each.name: _channel(each) for each in flows},
        "operations": {
            f"{action}_{each.name}": _operation(action, each) for each in flows for action in ("send", "receive")
        },
        "components": {
            "schemas": schemas["$defs"],
            "messages": {model.__name__: _message(model) for model in models},
            "securitySchemes": {"user": {"type": "userPassword", "description": "Each service has its own user."}},
        },
    }


def _channel(flow: MessageFlow) -> dict[str, Any]:
    exchange = {"name": flow.exchange.name, "type": flow.exchange.type.value, "durable": flow.exchange.durable}
    return {
        "address": flow.routing_key,
        "messages": {flow.message.__name__: {"$ref": f"#/components/messages/{flow.message.__name__}"}},
        "parameters": {name: PARAMETERS[name] for name in PARAMETERS if f"{{{name}}}" in flow.routing_key},
        "bindings": _amqp({"is": "routingKey", "exchange": exchange}),
    }


def _operation(action: str, flow: MessageFlow) -> dict[str, Any]:
    channel = f"#/channels/{flow.name}"
    role = f"Sent by {flow.sent_by}." if action == "send" else f"Received by {flow.received_by}."
    return {
        "action": action,
        "channel": {"$ref": channel},
        "summary": role,
        "description": f"{role} {flow.message.__doc__}",
        "security": [{"$ref": "#/components/securitySchemes/user"}],
        "messages": [{"$ref": f"{channel}/messages/{flow.message.__name__}"}],
        "bindings": _amqp({"deliveryMode": 2 if flow.persistent else 1} if action == "send" else {"ack": True}),
    }


def _amqp(binding: dict[str, Any]) -> dict[str, Any]:
    return {"amqp": {**binding, "bindingVersion": "0.3.0"}}


def _message(model: type[BaseModel]) -> dict[str, Any]:
    headers = {"headers": {"type": "object", "properties": DELIVERY_HEADERS}}
    return {
        "name": model.__name__,
        "summary": model.__doc__,
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        **(headers if model is messages.DeliveryRequested else {}),
    }
