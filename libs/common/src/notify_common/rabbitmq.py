"""Connections to RabbitMQ: settings, waiting for the broker, publishing with confirms."""

import asyncio
import logging
from collections.abc import Iterable
from socket import gethostname
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelPreconditionFailed, MessageProcessError
from aio_pika.robust_connection import RobustConnection
from faststream.exceptions import IncorrectState
from faststream.message import StreamMessage
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitMessage
from pydantic import Field, SecretStr

from notify_common.lasting_fault import LastingFault
from notify_common.process import FromEnvironment, Refused
from notify_common.topology import Binding, declare

log = logging.getLogger(__name__)

MINIMUM_VERSION = (3, 10)  # the first with at-least-once dead lettering
RECONNECT_INTERVAL = 1.0  # seconds
HEARTBEAT = 10  # seconds; a connection that is silently gone is noticed after about three

# What a broker that is away, going away or refusing raises. ChannelInvalidStateError is no AMQPError.
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, IncorrectState, OSError, TimeoutError)


class RabbitSettings(FromEnvironment):
    """Where RabbitMQ is."""

    rabbitmq_host: str = "localhost"
    rabbitmq_port: int = Field(5672, ge=1, le=65535)
    rabbitmq_user: str = "guest"
    rabbitmq_password: SecretStr = SecretStr("guest")
    rabbitmq_vhost: str = "/"

    def amqp_url(self, role: str = "") -> str:
        """The AMQP URI, password included (https://www.rabbitmq.com/docs/uri-spec).

        The management UI then shows the connection as `role@host`.
        """
        user, vhost = quote(self.rabbitmq_user, safe=""), quote(self.rabbitmq_vhost, safe="")
        password = quote(self.rabbitmq_password.get_secret_value(), safe="")
        query = urlencode({"heartbeat": HEARTBEAT, **({"name": f"{role}@{gethostname()}"} if role else {})})
        return f"amqp://{user}:{password}@{self.rabbitmq_host}:{self.rabbitmq_port}/{vhost}?{query}"


class PublishFailed(Exception):
    """The broker did not confirm the message: it may or may not have it."""


def create_broker(settings: RabbitSettings, role: str, *, graceful_timeout: float = 15.0) -> RabbitBroker:
    """A broker that reconnects by itself, publishes with confirms and hands over bodies as bytes.

    No FastDepends, no sync decoder, no logger: each would move every message through a thread.
    """
    fault = LastingFault(log, "the connection to rabbitmq is lost")

    def lost(connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Called for the loss, then for each try to reconnect that fails."""
        if error is None or isinstance(error, asyncio.CancelledError):
            return
        wait = fault.occurred(repr(error))
        if isinstance(connection, RobustConnection):
            connection.reconnect_interval = wait

    return RabbitBroker(
        settings.amqp_url(role),
        fail_fast=False,
        reconnect_interval=RECONNECT_INTERVAL,
        on_close=[lost],
        on_reconnected=[lambda _: fault.over()],
        graceful_timeout=graceful_timeout,
        # An unroutable message is an error, not a silent loss.
        default_channel=Channel(on_return_raises=True),
        apply_types=False,
        decoder=_body,
        logger=None,
    )


async def _body(message: StreamMessage[Any]) -> Any:  # noqa: ANN401 - FastStream's decoder signature
    return message.body


async def prepare_topology(
    settings: RabbitSettings, bindings: Iterable[Binding], exchanges: Iterable[RabbitExchange] = (), *, role: str = ""
) -> None:
    """Wait until RabbitMQ answers, refuse a version that is too old, and declare.

    It uses a connection of its own, which ends with it.
    """
    bindings, exchanges = list(bindings), list(exchanges)
    fault = LastingFault(log, f"rabbitmq is not ready at {settings.rabbitmq_host}:{settings.rabbitmq_port}")
    while True:
        try:
            async with await aio_pika.connect(settings.amqp_url(role)) as connection:
                if connection.transport is not None:
                    _check_version(connection.transport.connection.server_properties)
                await declare(connection, bindings, exchanges)
        except ChannelPreconditionFailed as error:
            raise Refused(
                f"RabbitMQ has a queue or exchange of one of our names with other arguments: {error}\n"
                "Another version has declared it. Delete it once it is empty: it is then declared anew."
            ) from error
        except BROKER_ERRORS as error:
            await asyncio.sleep(fault.occurred(repr(error)))
        else:
            fault.over()
            return


def _check_version(server_properties: Any) -> None:  # noqa: ANN401 - an AMQP field table
    version = server_properties.get("version", "")
    text = version.decode() if isinstance(version, bytes) else str(version)
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < MINIMUM_VERSION:
        raise Refused(f"RabbitMQ {text} is too old: 3.10 or newer is needed")


async def publish_confirmed(
    broker: RabbitBroker,
    body: str | bytes,
    *,
    exchange: RabbitExchange,
    routing_key: str,
    headers: dict[str, Any] | None = None,
) -> None:
    """Publish a persistent JSON message with an id of its own and return when the broker has it, else raise.

    There is no timeout: under a memory alarm the broker takes the message late, and a second copy published
    meanwhile would be sent twice. A connection that is gone is noticed by its heartbeat and raises.
    """
    message_id = str(uuid4())
    try:
        await broker.publish(
            body.encode() if isinstance(body, str) else body,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=True,
            persist=True,
            content_type="application/json",
            message_id=message_id,
            correlation_id=message_id,
            headers=headers,
        )
    except BROKER_ERRORS as error:
        raise PublishFailed(repr(error)) from error
    except asyncio.CancelledError as error:
        if is_being_cancelled():
            raise
        raise PublishFailed("the connection is stuck") from error


def is_being_cancelled() -> bool:
    """Whether a `CancelledError` is meant for this task.

    aiormq cancels, too, what waits for a confirm on a connection that does not answer its heartbeats.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def publish_until_confirmed(
    broker: RabbitBroker,
    body: str | bytes,
    *,
    exchange: RabbitExchange,
    routing_key: str,
    headers: dict[str, Any] | None = None,
) -> None:
    """Publish again and again until the broker has it, for as long as the broker is away."""
    while True:
        try:
            await publish_confirmed(broker, body, exchange=exchange, routing_key=routing_key, headers=headers)
        except PublishFailed as failure:
            log.debug("not confirmed exchange=%s reason=%s; trying again", exchange.name, failure)
            await asyncio.sleep(RECONNECT_INTERVAL)
        else:
            return


async def settle(message: RabbitMessage, *, ack: bool) -> None:
    """Ack the message, or reject it for good (it is dead-lettered).

    Where its connection is gone this does nothing: the broker delivers the message again.
    """
    try:
        await (message.ack() if ack else message.reject(requeue=False))
    except (*BROKER_ERRORS, MessageProcessError) as error:
        log.debug("message is not settled, it will come again message_id=%s error=%r", message.message_id, error)
