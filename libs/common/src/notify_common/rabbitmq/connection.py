"""Connections to RabbitMQ: settings, waiting for the broker, channels."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from socket import gethostname
from urllib.parse import quote, urlencode

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from aio_pika.robust_connection import RobustConnection
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
