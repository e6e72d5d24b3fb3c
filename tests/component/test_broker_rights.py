"""What each user of `deploy/rabbitmq/definitions.json` can do on a real broker, also if its password is stolen."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.sending import errors
from notify_database.engine import PostgresSettings
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import prepare_topology
from support.broker_users import DEFINITIONS, installed_definitions
from support.fakes import FakeProvider
from support.servers import Servers
from support.services import TIMEOUT, eventually, running_gateway, running_sender, running_status_writer
from support.stored import Stored

Attempt = Callable[..., Awaitable[None]]
Users = Mapping[str, RabbitSettings]

DELAY = timedelta(seconds=1)
SENDERS = {f"{channel}_sender": channel for channel in Channel}
MAX_QUEUES = 500
EVENT_QUEUE = "notifications.events.gateway.1"
EXCHANGES = {
    "notifications", "notifications.results", "notifications.dead", "notifications.events",
    *(f"notifications.{kind}.{channel}" for kind in ("results", "dead") for channel in Channel),
    *(f"notifications.{channel}.retry" for channel in Channel),
}  # fmt: skip
QUEUES = {
    "notifications.results", "notifications.dead", "notifications.dead.inbox", "notifications.dead.failed",
    *(f"notifications.{kind}.{channel}" for kind in ("results", "dead") for channel in Channel),
    *(f"notifications.dead.{channel}.failed" for channel in Channel),
    *(f"notifications.{channel}{queue}" for channel in Channel for queue in ("", ".retry.1000")),
}  # fmt: skip
MAY_PUBLISH_TO = {
    "gateway": {"notifications", "notifications.events"},
    **{
        sender: {f"notifications.results.{channel}", f"notifications.dead.{channel}", f"notifications.{channel}.retry"}
        for sender, channel in SENDERS.items()
    },
    "status_writer": {
        "notifications.events", "notifications.dead", *(f"notifications.dead.{channel}" for channel in Channel)
    },
}  # fmt: skip
MAY_READ = {
    "gateway": set[str](),
    **{
        sender: {f"notifications.{channel}", f"notifications.{channel}.retry.1000"}
        for sender, channel in SENDERS.items()
    },
    "status_writer": {
        "notifications.results", "notifications.dead.inbox", "notifications.dead.failed",
        *(f"notifications.results.{channel}" for channel in Channel),
        *(f"notifications.dead.{channel}.failed" for channel in Channel),
    },
}  # fmt: skip
MAY_DELETE = {
    "gateway": set[str](),
    **{sender: {f"notifications.{channel}.retry.1000"} for sender, channel in SENDERS.items()},
    "status_writer": set[str](),
}


@pytest.fixture
async def users(servers: Servers, rabbit: RabbitSettings) -> AsyncIterator[Users]:
    with installed_definitions(servers, rabbit) as users:
        await prepare_topology(rabbit, [each for channel in Channel for each in topology.retries(channel, [DELAY])])
        yield users


class Attacker:
    """Tries each operation on a channel of its own, because RabbitMQ closes the channel of a refused one."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def may(self, attempt: Attempt, *names: str) -> bool:
        """Return whether RabbitMQ allows the operation."""
        try:
            async with self._connection.channel() as channel:
                await attempt(channel, *names)
        except ChannelAccessRefused:
            return False
        return True

    async def allowed(self, attempt: Attempt, names: Iterable[str]) -> set[str]:
        """Return the names for which RabbitMQ allows the operation."""
        return {name for name in sorted(names) if await self.may(attempt, name)}


@asynccontextmanager
async def attacker(user: RabbitSettings) -> AsyncIterator[Attacker]:
    async with await aio_pika.connect(user.amqp_url()) as connection:
        yield Attacker(connection)


async def publish(channel: AbstractChannel, exchange: str, routing_key: str = "nowhere") -> None:
    target = await channel.get_exchange(exchange, ensure=False)
    await target.publish(aio_pika.Message(b""), routing_key, mandatory=False)


async def publish_by_default(channel: AbstractChannel, queue: str) -> None:
    await channel.default_exchange.publish(aio_pika.Message(b""), queue, mandatory=False)


async def purge(channel: AbstractChannel, queue: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).purge()


async def delete_queue(channel: AbstractChannel, queue: str) -> None:
    await channel.queue_delete(queue)


async def delete_exchange(channel: AbstractChannel, exchange: str) -> None:
    await channel.exchange_delete(exchange)


async def declare_queue(channel: AbstractChannel, queue: str, dead_letters_to: str | None = None) -> None:
    arguments: Any = None if dead_letters_to is None else {"x-dead-letter-exchange": dead_letters_to}
    await channel.declare_queue(queue, durable=True, arguments=arguments)


async def declare_exchange(channel: AbstractChannel, exchange: str, alternate: str | None = None) -> None:
    arguments: Any = None if alternate is None else {"alternate-exchange": alternate}
    await channel.declare_exchange(exchange, durable=True, arguments=arguments)


async def bind_queue(channel: AbstractChannel, queue: str, exchange: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(exchange, "stolen")


async def bind_exchange(channel: AbstractChannel, target: str, source: str) -> None:
    await (await channel.get_exchange(target, ensure=False)).bind(source, "stolen")


@pytest.mark.parametrize("role", MAY_READ)
async def test_user_can_publish_read_and_delete_only_what_its_service_needs(users: Users, role: str) -> None:
    async with attacker(users[role]) as thief:
        assert await thief.allowed(publish, EXCHANGES) == MAY_PUBLISH_TO[role]
        assert await thief.allowed(publish_by_default, QUEUES) == set()
        # Reading a queue needs the same right as purging it.
        assert await thief.allowed(purge, QUEUES) == MAY_READ[role]
        assert await thief.allowed(delete_queue, QUEUES) == MAY_DELETE[role]
        own = {f"notifications.{SENDERS[role]}.retry"} if role in SENDERS else set()
        assert await thief.allowed(delete_exchange, EXCHANGES) == own


@pytest.mark.parametrize("role", MAY_READ)
async def test_user_can_declare_only_its_own_queues(users: Users, role: str) -> None:
    own = {
        "gateway": {EVENT_QUEUE},
        **{sender: {f"notifications.{channel}.retry.77"} for sender, channel in SENDERS.items()},
        "status_writer": set[str](),
    }
    names = {"mine", "notifications.mine", "notifications.results.mine", "amq.mine"}.union(*own.values())
    async with attacker(users[role]) as thief:
        assert await thief.allowed(declare_queue, names) == own[role]
        assert await thief.allowed(declare_exchange, names) == own[role]


@pytest.mark.parametrize("role", SENDERS)
async def test_sender_cannot_reach_others_through_arguments_or_bindings(users: Users, role: str) -> None:
    """RabbitMQ checks dead-letter and alternate exchanges when a queue or exchange is declared, and not later."""
    own = f"notifications.{SENDERS[role]}.retry"
    others = {"amq.direct", *EXCHANGES} - MAY_PUBLISH_TO[role]
    async with attacker(users[role]) as thief:
        for target in sorted({"", *others}):
            assert not await thief.may(declare_queue, f"{own}.77", target), target
            assert not await thief.may(declare_exchange, f"{own}.77", target), target
        for target in sorted(others):
            assert not await thief.may(bind_exchange, target, own), target
            assert not await thief.may(bind_queue, f"{own}.1000", target), target
        for queue in sorted(QUEUES - MAY_READ[role] - MAY_PUBLISH_TO[role]):
            assert not await thief.may(bind_queue, queue, own), queue


LIMITS = {user["name"]: user["limits"] for user in json.loads(DEFINITIONS.read_text())["users"] if "limits" in user}


@asynccontextmanager
async def all_connections(user: RabbitSettings, role: str) -> AsyncIterator[None]:
    """Open all connections that RabbitMQ allows the user."""
    async with AsyncExitStack() as connections:
        for _ in range(LIMITS[role]["max-connections"]):
            await connections.enter_async_context(await aio_pika.connect(user.amqp_url()))
        yield


@pytest.mark.parametrize("role", MAY_READ)
async def test_user_can_open_only_so_many_connections(users: Users, role: str) -> None:
    """Otherwise, a stolen password could take RabbitMQ's memory and files from the other services."""
    async with all_connections(users[role], role):
        with pytest.raises(AMQPError, match=r"Connection\.Close"):
            await aio_pika.connect(users[role].amqp_url())
        other = next(each for each in MAY_READ if each != role)
        async with attacker(users[other]):
            pass


async def test_service_waits_for_a_connection_if_all_are_taken(users: Users, caplog: pytest.LogCaptureFixture) -> None:
    user = users["email_sender"]
    async with all_connections(user, "email_sender"):
        declared = DeclaredTopology(user, topology.sender(Channel.EMAIL, [DELAY]), role="email_sender")
        starting = asyncio.create_task(declared.declare())

        async def refused() -> bool:
            return "is not ready" in caplog.text

        await eventually(refused, "the connection is refused")
        assert not starting.done()
    async with asyncio.timeout(TIMEOUT):
        await starting


async def test_user_can_open_only_so_many_channels(users: Users) -> None:
    limit = LIMITS["email_sender"]["max-channels"]
    async with await aio_pika.connect(users["email_sender"].amqp_url()) as connection:
        for _ in range(limit):
            await connection.channel(publisher_confirms=False)
        with pytest.raises(AMQPError, match="limit"):
            await connection.channel(publisher_confirms=False)


async def test_sender_can_declare_only_so_many_queues(users: Users) -> None:
    """Otherwise, a stolen password could fill RabbitMQ's memory with empty queues."""
    user = users["email_sender"]
    async with await aio_pika.connect(user.amqp_url()) as connection, connection.channel() as channel:

        async def declare_all() -> None:
            for number in range(MAX_QUEUES):
                await channel.declare_queue(f"notifications.email.retry.{number}", durable=True)

        with pytest.raises(ChannelPreconditionFailed, match="queue limit"):
            await declare_all()
    declared = DeclaredTopology(user, topology.sender(Channel.EMAIL, [DELAY, 1_000 * DELAY]), role="email_sender")
    await declared.declare()
    # This queue could not be declared. The sender works without it, and declares it once there are fewer queues.
    assert declared.missing == {"notifications.email.retry.1000000"}


@pytest.mark.parametrize("channel", Channel)
async def test_every_service_works_with_its_own_user(
    users: Users, postgres: PostgresSettings, engine: AsyncEngine, channel: Channel
) -> None:
    """Send one notification after a retry, and fail one whose message its sender cannot handle."""
    answers = [errors.TemporaryFailure("busy"), None, ZeroDivisionError()]

    async def answer(_: DeliveryRequested) -> str:
        error = answers.pop(0)
        if error is not None:
            raise error
        return "id"

    async with (
        running_status_writer(users["status_writer"], postgres),
        running_sender(users[f"{channel}_sender"], FakeProvider(answer), channel=channel, first_delay=DELAY),
        running_gateway(users["gateway"], postgres) as gateway,
    ):
        for end in ("sent", "failed"):
            body = {"user_id": 1, "message": "x", "type": channel.value}
            response = await gateway.post("/api/notifications", json=body)
            assert response.status_code == 201, response.text
            [delivery] = response.json()["deliveries"]
            await Stored(engine).becomes(UUID(delivery["id"]), end)
