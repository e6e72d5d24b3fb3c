"""Connections to RabbitMQ: settings, waiting for the broker, channels."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from socket import gethostname
from typing import Any
from urllib.parse import quote, urlencode

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from aio_pika.robust_connection import RobustConnection
from aiormq.channel import Channel
from faststream.rabbit import RabbitBroker
from pydantic import Field, SecretStr

from notify_common.errors import BrokerUnavailable
from notify_common.runtime.outage import Outage
from notify_common.runtime.settings import EnvironmentSettings

log = logging.getLogger(__name__)

MINIMUM_VERSION = (3, 10)  # the first with at-least-once dead lettering
RECONNECT_INTERVAL = 1.0  # seconds
HEARTBEAT = 10  # seconds; a connection that is silently gone is noticed after about three

# What a broker that is away, going away or refusing raises. ChannelInvalidStateError is no AMQPError.
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
# aiormq raises these, of no class of its own, for some of what a lost connection takes along.
PLAIN_ERRORS = (Exception, RuntimeError)


class RabbitSettings(EnvironmentSettings):
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
    outage = Outage(log, "the connection to rabbitmq is lost")

    def lost(connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Called for the loss, then for each try to reconnect that fails."""
        if error is None or isinstance(error, asyncio.CancelledError):
            return
        wait = outage.failed(repr(error))
        if isinstance(connection, RobustConnection):
            connection.reconnect_interval = wait

    return RabbitBroker(
        settings.amqp_url(role),
        fail_fast=False,
        reconnect_interval=RECONNECT_INTERVAL,
        on_close=[lost],
        on_reconnected=[lambda _: outage.ended()],
        apply_types=False,
        logger=None,
    )


async def open_channel(broker: RabbitBroker, *, publisher_confirms: bool) -> Channel:
    """Return a new channel on the connection that `broker` keeps; once lost, the channel is not opened again."""
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


async def wait_unless_closed(channel: Channel, awaited: "asyncio.Future[Any]") -> None:
    """Return when `awaited` is done, or the channel has closed."""
    closing = channel.closing
    try:
        await asyncio.wait({awaited, closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closing.cancel()  # this only ends the observation


async def run_unless_closed(channel: Channel, writing: Coroutine[Any, Any, None]) -> None:
    """Run what waits for room in the write queue; raise if the channel closes first, because nobody makes room then."""
    task = asyncio.create_task(writing)
    try:
        await wait_unless_closed(channel, task)
        if not task.done():
            raise ConnectionError("the channel is closed")
    finally:
        task.cancel()
    task.result()


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what a broker that is away raises into `BrokerUnavailable`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, BROKER_ERRORS) and type(error) not in PLAIN_ERRORS:
            raise
        if _is_being_cancelled():
            # aiormq puts the loss of the connection in the place of a cancellation that comes with it.
            raise asyncio.CancelledError from error
        raise BrokerUnavailable(repr(error)) from error
    except asyncio.CancelledError as error:
        if _is_being_cancelled():
            raise
        # Not meant for this task: aiormq cancels, too, what waits on a connection that does not answer its heartbeats.
        raise BrokerUnavailable("the connection is stuck") from error


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
