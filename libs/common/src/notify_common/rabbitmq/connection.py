"""RabbitMQ connections: settings, the broker object, channels, and errors."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from typing import Any, Self
from urllib.parse import quote, urlencode

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPError, ChannelInvalidStateError
from aio_pika.robust_connection import RobustConnection
from aiormq.abc import AbstractConnection as TransportConnection
from aiormq.channel import Channel
from faststream.rabbit import RabbitBroker
from pydantic import Field, SecretStr, model_validator
from typing_extensions import override
from yarl import URL

from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.properties import accept_any_properties
from notify_common.runtime.hosts import Address, AddressList, Hosts, addresses, shared_hosts
from notify_common.runtime.networks import is_local
from notify_common.runtime.outage import Outage
from notify_common.runtime.settings import EnvironmentSettings
from notify_common.runtime.tls import ClientFiles

log = logging.getLogger(__name__)

RECONNECT_INTERVAL = 1.0  # seconds
TLS_CLOSE_TIMEOUT = 1.0  # seconds; a silent node would otherwise delay the end of its connection by 30 s

# Errors that mean that the broker is unavailable. ChannelInvalidStateError is listed, as it is not an AMQPError. aiormq
# raises StopAsyncIteration if a new connection is closed at once, for example by a proxy in front of the broker.
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError, StopAsyncIteration)
# aiormq raises these classes themselves, not subclasses, for some calls that a lost connection interrupts.
PLAIN_ERRORS = (Exception, RuntimeError)


class RabbitSettings(EnvironmentSettings):
    """The address and credentials of RabbitMQ."""

    rabbitmq_host: str = "localhost"
    rabbitmq_port: int = Field(5672, ge=1, le=65535)
    rabbitmq_hosts: AddressList | None = None
    rabbitmq_connect_timeout: float = Field(5.0, gt=0, le=60)
    rabbitmq_heartbeat: int = Field(10, ge=1, le=600)
    rabbitmq_user: str = "guest"
    rabbitmq_password: SecretStr = SecretStr("guest")
    rabbitmq_vhost: str = "/"
    rabbitmq_tls: bool = False
    rabbitmq_ca_file: Path | None = None
    rabbitmq_cert_file: Path | None = None
    rabbitmq_key_file: Path | None = None

    @model_validator(mode="after")
    def _rabbitmq_hosts_are_unambiguous(self) -> Self:
        if self.rabbitmq_hosts is not None and "rabbitmq_host" in self.model_fields_set:
            raise ValueError("RABBITMQ_HOST and RABBITMQ_HOSTS: set only one of them")
        return self

    @model_validator(mode="after")
    def _rabbitmq_files_are_usable(self) -> Self:
        files = self.rabbitmq_files()
        if not self.rabbitmq_tls and (variables := files.variables("RABBITMQ")):
            raise ValueError(f"{', '.join(variables)}: needs RABBITMQ_TLS=true")
        files.check("RABBITMQ")
        return self

    def rabbitmq_files(self) -> ClientFiles:
        """Return the certificate files for connections to RabbitMQ."""
        return ClientFiles(self.rabbitmq_ca_file, self.rabbitmq_cert_file, self.rabbitmq_key_file)

    @override
    def plain_text(self) -> list[str]:
        unset = "rabbitmq_tls" not in self.model_fields_set
        remote = any(not is_local(address.host) for address in self._rabbitmq_addresses())
        return [*super().plain_text(), *(["RABBITMQ_TLS"] if unset and remote else [])]

    def _rabbitmq_addresses(self) -> tuple[Address, ...]:
        if self.rabbitmq_hosts is None:
            return (Address(self.rabbitmq_host, self.rabbitmq_port),)
        return addresses(self.rabbitmq_hosts, self.rabbitmq_port)

    def rabbitmq_nodes(self) -> Hosts:
        """Return the nodes, which all connections of this process share.

        Each process draws its own order, so that the processes spread over the nodes.
        """
        return shared_hosts(self._rabbitmq_addresses(), shuffled=True)

    def amqp_url(self, role: str = "", node: Address | None = None) -> str:
        """Return the AMQP URI, including the password (https://www.rabbitmq.com/docs/uri-spec).

        If a `role` is given, the management UI shows the connection as `role@host`. Without a `node`, the URI is that
        of the node to try first.
        """
        user, vhost = quote(self.rabbitmq_user, safe=""), quote(self.rabbitmq_vhost, safe="")
        password = quote(self.rabbitmq_password.get_secret_value(), safe="")
        name = {"name": f"{role}@{gethostname()}"} if role else {}
        query: dict[str, object] = {"heartbeat": self.rabbitmq_heartbeat, **name}
        if self.rabbitmq_tls:
            # aiormq verifies the server's certificate and host name. It reads these files again for each connection.
            parameters = zip(("cafile", "certfile", "keyfile"), self.rabbitmq_files(), strict=True)
            query |= {parameter: file for parameter, file in parameters if file is not None}
        scheme = "amqps" if self.rabbitmq_tls else "amqp"
        return f"{scheme}://{user}:{password}@{node or self.rabbitmq_nodes().first}/{vhost}?{urlencode(query)}"


async def connect(settings: RabbitSettings, role: str) -> AbstractConnection:
    """Return a connection to the first node that accepts one; if it is lost, it is not opened again."""
    accept_any_properties()
    nodes, errors = settings.rabbitmq_nodes(), []
    for node in nodes.in_turn():
        try:
            # Without a timeout, this would wait forever for a node that accepts the connection but stays silent.
            return await aio_pika.connect(
                settings.amqp_url(role, node),
                timeout=settings.rabbitmq_connect_timeout,
                connection_class=SingleConnection,
            )
        except CONNECTION_EXCEPTIONS as error:
            nodes.failed(node)
            if len(nodes) == 1:
                raise
            errors.append(f"{node}: {error!r}")
    raise ConnectionError("; ".join(errors))


def _limit_tls_close(connection: aio_pika.Connection) -> None:
    if connection.url.scheme == "amqps":
        connection.kwargs["ssl_shutdown_timeout"] = TLS_CLOSE_TIMEOUT  # an argument of asyncio.open_connection


class SingleConnection(aio_pika.Connection):
    """A connection that is not opened again after a loss."""

    def __init__(self, url: URL, **options: Any) -> None:  # noqa: ANN401 - those of `aio_pika.Connection`
        super().__init__(url, **options)
        _limit_tls_close(self)


class FailoverConnection(RobustConnection):
    """A connection that is opened again after a loss, to the next node.

    aio-pika knows only one URL. It calls `_on_connection_close` after a loss and after a failed attempt, in both cases
    before the next attempt, which reads `url`.
    """

    def __init__(self, url: URL, *, nodes: Hosts, **options: Any) -> None:  # noqa: ANN401 - those of `RobustConnection`
        super().__init__(url, **options)
        _limit_tls_close(self)
        self._nodes = nodes
        self.lost_node: Address | None = None
        """The node of the last loss or failed attempt."""
        self._choose_node()

    @override
    async def _on_connection_close(self, closing: "asyncio.Future[Any]") -> None:
        if not self.close_called:
            self.lost_node = self._node
            self._nodes.failed(self._node)
            self._choose_node()
        await super()._on_connection_close(closing)

    def _choose_node(self) -> None:
        self._node = self._nodes.first
        self.url = self.url.with_host(self._node.host).with_port(self._node.port)


class FailoverBroker(RabbitBroker):
    """A FastStream broker that connects to the nodes in turn."""

    def __init__(self, settings: RabbitSettings, role: str, *, timeout: float | None = None, **options: Any) -> None:  # noqa: ANN401 - those of `RabbitBroker`
        """Create the broker. An attempt to connect may take `timeout` seconds, or else `RABBITMQ_CONNECT_TIMEOUT`."""
        accept_any_properties()
        timeout = settings.rabbitmq_connect_timeout if timeout is None else timeout
        super().__init__(settings.amqp_url(role), timeout=timeout, apply_types=False, logger=None, **options)
        self._nodes = settings.rabbitmq_nodes()
        self._created: FailoverConnection | None = None
        # FastStream passes these to `connect_robust`, but has no parameter for the class of the connection.
        self._connection_kwargs["connection_class"] = self._create_connection

    def _create_connection(self, url: URL, **options: Any) -> FailoverConnection:  # noqa: ANN401 - as above
        self._created = FailoverConnection(url, nodes=self._nodes, **options)
        return self._created

    @override
    async def _connect(self) -> RobustConnection:
        try:
            return await super()._connect()
        except BaseException:
            # FastStream forgets a connection that is lost before it has a channel. aio-pika would then open it again
            # after each loss, for as long as the process runs.
            if self._created is not None:
                await self._created.close()
            raise


def create_broker(settings: RabbitSettings, role: str) -> RabbitBroker:
    """Return a broker that keeps a connection open and reconnects automatically."""
    outage = Outage(log, "the connection to RabbitMQ is down")

    def lost(connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Handle the loss of the connection, and then each failed attempt to reconnect."""
        if error is None or isinstance(error, asyncio.CancelledError):
            return
        if isinstance(connection, FailoverConnection):
            connection.reconnect_interval = outage.failed(f"{connection.lost_node}: {error!r}")

    return FailoverBroker(
        settings,
        role,
        fail_fast=False,
        reconnect_interval=RECONNECT_INTERVAL,
        on_close=[lost],
        on_reconnected=[lambda _: outage.ended()],
    )


def open_transport(connection: AbstractConnection) -> TransportConnection:
    """Return the aiormq connection that `connection` uses now; raise `ConnectionError` if it is not open."""
    transport = connection.transport
    if transport is None or transport.connection.is_closed or not connection.connected.is_set():
        raise ConnectionError("not connected to RabbitMQ")
    return transport.connection


async def open_channel(broker: RabbitBroker, *, publisher_confirms: bool) -> Channel:
    """Return a new channel on the broker's connection. If the channel is lost, it is not reopened."""
    channel = await open_transport(await broker.connect()).channel(
        publisher_confirms=publisher_confirms,
        on_return_raises=publisher_confirms,  # otherwise, unroutable messages would be lost silently
    )
    assert isinstance(channel, Channel)  # noqa: S101 - aiormq's only channel class
    return channel


async def wait_unless_closed(channel: Channel, awaited: "asyncio.Future[Any]") -> None:
    """Return once `awaited` is done or the channel has closed."""
    closing = channel.closing
    try:
        await asyncio.wait({awaited, closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closing.cancel()  # this stops watching the channel, and does not close it


async def run_unless_closed(channel: Channel, writing: Coroutine[Any, Any, None]) -> None:
    """Run `writing`, which may wait for room in the write queue; raise `ConnectionError` if the channel closes."""
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
    """Convert errors caused by an unavailable broker into `BrokerUnavailable`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, BROKER_ERRORS) and type(error) not in PLAIN_ERRORS:
            raise
        if _is_being_cancelled():
            # If the connection is lost while this task is being cancelled, aiormq raises only the connection error.
            raise asyncio.CancelledError from error
        raise BrokerUnavailable(repr(error)) from error
    except asyncio.CancelledError as error:
        if _is_being_cancelled():
            raise
        # Nobody cancelled this task: if a connection misses its heartbeats, aiormq cancels the tasks that wait on it.
        raise BrokerUnavailable("the connection missed its heartbeats") from error


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
