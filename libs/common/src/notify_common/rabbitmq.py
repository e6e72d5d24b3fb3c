"""Connections to RabbitMQ: settings, waiting for the broker, settling what was received."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from socket import gethostname
from typing import Any
from urllib.parse import quote, urlencode

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelPreconditionFailed, MessageProcessError
from aio_pika.robust_connection import RobustConnection
from faststream.exceptions import IncorrectState
from faststream.message import StreamMessage
from faststream.rabbit import RabbitBroker, RabbitExchange, RabbitMessage
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


class BrokerAway(Exception):
    """RabbitMQ is away, going away or refusing: what was under way may or may not have reached it."""


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


def create_broker(settings: RabbitSettings, role: str, *, graceful_timeout: float = 15.0) -> RabbitBroker:
    """A broker that reconnects by itself and hands over bodies as bytes.

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


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what a broker that is away raises into `BrokerAway`."""
    try:
        yield
    except BROKER_ERRORS as error:
        raise BrokerAway(repr(error)) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not meant for this task: aiormq cancels, too, what waits on a connection that does not answer its heartbeats.
        raise BrokerAway("the connection is stuck") from error


async def reject(message: RabbitMessage) -> None:
    """Reject the message for good: it is dead-lettered.

    Where its connection is gone this does nothing: the broker delivers the message again.
    """
    try:
        with broker_errors():
            await message.reject(requeue=False)
    except (BrokerAway, MessageProcessError) as error:
        log.debug("message is not rejected, it will come again message_id=%s error=%r", message.message_id, error)
