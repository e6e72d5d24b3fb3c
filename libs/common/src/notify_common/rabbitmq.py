"""Connections to RabbitMQ: settings, waiting for the broker, channels."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from socket import gethostname
from typing import Any
from urllib.parse import quote, urlencode

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelPreconditionFailed
from aio_pika.robust_connection import RobustConnection
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from faststream.rabbit import RabbitBroker, RabbitExchange
from pydantic import Field, SecretStr

from notify_common.lasting_fault import LastingFault
from notify_common.process import FromEnvironment, Refused
from notify_common.topology import Binding, declare

log = logging.getLogger(__name__)

MINIMUM_VERSION = (3, 10)  # the first with at-least-once dead lettering
RECONNECT_INTERVAL = 1.0  # seconds
HEARTBEAT = 10  # seconds; a connection that is silently gone is noticed after about three

# What a broker that is away, going away or refusing raises. ChannelInvalidStateError is no AMQPError.
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
# aiormq raises these, of no class of its own, for some of what a lost connection takes along.
PLAIN_ERRORS = (Exception, RuntimeError)


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


def create_broker(settings: RabbitSettings, role: str) -> RabbitBroker:
    """A broker that keeps a connection and reconnects by itself."""
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
        apply_types=False,
        logger=None,
    )


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
            with broker_errors():
                async with await aio_pika.connect(settings.amqp_url(role)) as connection:
                    if connection.transport is not None:
                        _check_version(connection.transport.connection.server_properties)
                    await declare(connection, bindings, exchanges)
        except BrokerAway as away:
            if isinstance(away.__cause__, ChannelPreconditionFailed):
                raise Refused(
                    f"RabbitMQ has a queue or exchange of one of our names with other arguments: {away}\n"
                    "Another version has declared it. Delete it once it is empty: it is then declared anew."
                ) from away
            await asyncio.sleep(fault.occurred(away))
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
    except Exception as error:
        if not isinstance(error, BROKER_ERRORS) and type(error) not in PLAIN_ERRORS:
            raise
        if _is_being_cancelled():
            # aiormq puts the loss of the connection in the place of a cancellation that comes with it.
            raise asyncio.CancelledError from error
        raise BrokerAway(repr(error)) from error
    except asyncio.CancelledError as error:
        if _is_being_cancelled():
            raise
        # Not meant for this task: aiormq cancels, too, what waits on a connection that does not answer its heartbeats.
        raise BrokerAway("the connection is stuck") from error


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def open_channel(broker: RabbitBroker, *, publisher_confirms: bool) -> Channel:
    """A channel of aiormq on the connection that `broker` keeps; it is not opened anew when it is lost."""
    connection = await broker.connect()
    transport = connection.transport
    if transport is None or transport.connection.is_closed or not connection.connected.is_set():
        raise ConnectionError("not connected to RabbitMQ")
    channel = await transport.connection.channel(
        publisher_confirms=publisher_confirms,
        on_return_raises=publisher_confirms,  # an unroutable message is an error, not a silent loss
    )
    assert isinstance(channel, Channel)  # noqa: S101 - aiormq's one class of channels
    return channel


async def write(channel: Channel, frames: ChannelFrame) -> None:
    """Hand the frames to the connection's writer; an error where the channel ends first: nobody takes them then."""
    try:
        channel.write_queue.put_nowait(frames)
    except asyncio.QueueFull:
        writing = asyncio.create_task(channel.write_queue.put(frames))
        try:
            await wait_unless_closed(channel, writing)
            if not writing.done():
                raise ConnectionError("the channel is closed") from None
        finally:
            writing.cancel()


async def wait_unless_closed(channel: Channel, awaited: "asyncio.Future[Any]") -> None:
    """Return when `awaited` is done, or the channel has ended."""
    closing = channel.closing
    try:
        await asyncio.wait({awaited, closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closing.cancel()  # an observer of the channel's end, which the channel would keep
