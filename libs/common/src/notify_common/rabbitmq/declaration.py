"""Declare the topology once RabbitMQ is available."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused
from faststream.rabbit import RabbitExchange

from notify_common.contracts.topology import Binding
from notify_common.errors import BrokerUnavailable, StartupError
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors
from notify_common.runtime.outage import Outage

log = logging.getLogger(__name__)

MINIMUM_VERSION = (3, 10)  # the first version with at-least-once dead-lettering


async def prepare_topology(
    settings: RabbitSettings, bindings: Sequence[Binding], exchanges: Sequence[RabbitExchange] = (), *, role: str = ""
) -> None:
    """Wait for RabbitMQ, check its version, and declare the topology; raise `StartupError` if waiting cannot help.

    This uses a separate connection, which is closed afterwards.
    """

    async def connect_and_declare() -> None:
        with broker_errors():
            async with await aio_pika.connect(settings.amqp_url(role)) as connection:
                if connection.transport is not None:
                    _check_version(connection.transport.connection.server_properties)
                try:
                    await declare(connection, bindings, exchanges)
                except ChannelPreconditionFailed as error:
                    raise StartupError(
                        f"RabbitMQ has a queue or exchange with the same name but different arguments: {error!r}\n"
                        "Another version declared it. Delete it once it is empty; this service then declares it again."
                    ) from error

    outage = Outage(log, f"RabbitMQ at {settings.rabbitmq_host}:{settings.rabbitmq_port} is not ready")
    await outage.retry(connect_and_declare, BrokerUnavailable)


def _check_version(server_properties: Any) -> None:  # noqa: ANN401 - an AMQP field table
    version = server_properties.get("version", "")
    text = version.decode() if isinstance(version, bytes) else str(version)
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < MINIMUM_VERSION:
        raise StartupError(f"RabbitMQ {text} is too old: 3.10 or newer is needed")


async def declare(
    connection: AbstractConnection, bindings: Sequence[Binding], exchanges: Sequence[RabbitExchange] = ()
) -> None:
    """Declare everything in the given order. Dead-letter targets must come first, or the first dead letters are late.

    If this user is not allowed to declare, the broker's definitions must already contain everything; otherwise,
    `ChannelNotFoundEntity` is raised.
    """
    for exchange in dict.fromkeys([*exchanges, *(binding.exchange for binding in bindings)]):
        try:
            async with connection.channel() as channel:
                await channel.declare_exchange(exchange.name, exchange.type.value, durable=True)
        except ChannelAccessRefused:
            async with connection.channel() as channel:
                await channel.get_exchange(exchange.name, ensure=True)
    for binding in bindings:
        arguments: Any = binding.queue.arguments
        try:
            async with connection.channel() as channel:
                await channel.declare_queue(binding.queue.name, durable=True, arguments=arguments)
        except ChannelAccessRefused:
            async with connection.channel() as channel:
                await channel.get_queue(binding.queue.name, ensure=True)
        with suppress(ChannelAccessRefused):
            async with connection.channel() as channel:
                queue = await channel.get_queue(binding.queue.name, ensure=False)
                await queue.bind(binding.exchange.name, binding.routing_key)
