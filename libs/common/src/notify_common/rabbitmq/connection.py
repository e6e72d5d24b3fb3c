"""Connections to RabbitMQ: settings, the broker object, channels, and errors."""

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

RECONNECT_INTERVAL = 1.0  # seconds
HEARTBEAT = 10  # seconds; a dead connection is detected after about three heartbeats

# The errors of an unavailable broker. ChannelInvalidStateError is not an AMQPError.
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
# aiormq raises plain instances of these for some calls that a lost connection interrupts.
PLAIN_ERRORS = (Exception, RuntimeError)


class RabbitSettings(EnvironmentSettings):
    """The address and credentials of RabbitMQ."""

    rabbitmq_host: str = "localhost"
    rabbitmq_port: int = Field(5672, ge=1, le=65535)
    rabbitmq_user: str = "guest"
    rabbitmq_password: SecretStr = SecretStr("guest")
    rabbitmq_vhost: str = "/"

    def amqp_url(self, role: str = "") -> str:
        """Return the AMQP URI, including the password (https://www.rabbitmq.com/docs/uri-spec).

        The management UI shows the connection as `role@host`.
        """
        user, vhost = quote(self.rabbitmq_user, safe=""), quote(self.rabbitmq_vhost, safe="")
        password = quote(self.rabbitmq_password.get_secret_value(), safe="")
        query = urlencode({"heartbeat": HEARTBEAT, **({"name": f"{role}@{gethostname()}"} if role else {})})
        return f"amqp://{user}:{password}@{self.rabbitmq_host}:{self.rabbitmq_port}/{vhost}?{query}"


def create_broker(settings: RabbitSettings, role: str) -> RabbitBroker:
    """Return a broker that keeps a connection and reconnects automatically."""
    outage = Outage(log, "the connection to rabbitmq is lost")

    def lost(connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Handle the loss, then each failed attempt to reconnect."""
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
    """Run `writing`, which waits for room in the write queue; raise `ConnectionError` if the channel closes first."""
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
    """Raise `BrokerUnavailable` instead of the errors of an unavailable broker."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, BROKER_ERRORS) and type(error) not in PLAIN_ERRORS:
            raise
        if _is_being_cancelled():
            # aiormq replaces a cancellation by the loss of the connection, if both happen together.
            raise asyncio.CancelledError from error
        raise BrokerUnavailable(repr(error)) from error
    except asyncio.CancelledError as error:
        if _is_being_cancelled():
            raise
        # Nobody cancelled this task: aiormq cancels whatever waits on a connection that misses its heartbeats.
        raise BrokerUnavailable("the connection is stuck") from error


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
