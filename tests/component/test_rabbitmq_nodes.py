"""Services that know several RabbitMQ nodes: they leave a node that is dead, frozen or silent."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import aio_pika
import httpx
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, DeliveryStatus, StatusChange
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors, connect, create_broker
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_gateway.console.queue_statistics import QueueStatisticsClient
from notify_gateway.settings import GatewaySettings
from notify_local.ports import Ports
from support.amqp import hand_on, prepare_topology
from support.event_stream import post, reading
from support.fakes import FakeProvider
from support.processes import gateway_command
from support.rabbitmq_nodes import Node, closing_address, node_settings, running_node, silent_address, try_first
from support.servers import Servers
from support.services import (
    TIMEOUT,
    delivery_requested,
    eventually,
    running_sender,
    running_status_writer,
    served_gateway,
)

NOTHING_LISTENS = "127.0.0.1:1"
PLAIN = "http://"
QUICK = {"rabbitmq_connect_timeout": 0.5, "rabbitmq_heartbeat": 1}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Run two nodes that do not know each other. The last test that uses them kills one."""
    with ExitStack() as stack:
        ports = Ports()
        first, second = (stack.enter_context(running_node(tmp_path_factory.mktemp("node"), ports)) for _ in range(2))
        yield first, second


def behind(rabbit: RabbitSettings, first: str, **change: object) -> RabbitSettings:
    """Return settings with which `first` is tried before the node of `rabbit`."""
    node = str(rabbit.rabbitmq_nodes().first)
    given = rabbit.model_dump(exclude_unset=True, exclude={"rabbitmq_host", "rabbitmq_port"})
    settings = RabbitSettings.model_validate({**given, **QUICK, "rabbitmq_hosts": f"{first},{node}", **change})
    try_first(settings.rabbitmq_nodes(), first)
    return settings


async def is_sent_and_reported(gateway: httpx.URL) -> None:
    """Wait until a new notification is sent and its events arrive. The stream may end until the node is replaced."""
    async with asyncio.timeout(2 * TIMEOUT):
        while True:
            with suppress(AssertionError):
                async with reading(gateway) as (events, live):
                    if live:
                        changes = await events.until(await post(gateway))
                        assert changes[-1]["status"] == "sent"
                        return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("loss", ["frozen", "killed"])
async def test_every_service_moves_to_another_node(
    nodes: tuple[Node, Node], postgres: PostgresSettings, loss: str
) -> None:
    first, second = nodes
    rabbit = node_settings(first.address, second.address, **QUICK)
    provider = FakeProvider()
    # The nodes share no queues. Only one of them responds at a time, so that no connection that a busy machine slows
    # down ends up on the other one, where nobody would answer it.
    with ExitStack() as only_first, ExitStack() as only_second:
        only_first.enter_context(second.frozen())
        async with (
            running_sender(rabbit, provider),
            running_status_writer(rabbit, postgres),
            served_gateway(rabbit, postgres) as gateway,
        ):
            await is_sent_and_reported(gateway)
            if loss == "killed":
                first.kill()
            else:
                only_second.enter_context(first.frozen())
            only_first.close()
            await is_sent_and_reported(gateway)
            assert str(rabbit.rabbitmq_nodes().first) == second.address
            assert await gateway_command("dead", "list", servers=[rabbit, postgres]) == ""


async def test_node_that_stays_silent_is_left_after_the_connect_timeout(rabbit: RabbitSettings) -> None:
    async with silent_address() as silent, asyncio.timeout(TIMEOUT):
        settings = behind(rabbit, silent)
        async with await connect(settings, "test"):
            pass
        assert str(settings.rabbitmq_nodes().first) == str(rabbit.rabbitmq_nodes().first)


async def test_one_silent_node_does_not_hold_up_a_service_for_ever(rabbit: RabbitSettings) -> None:
    async with silent_address() as silent, asyncio.timeout(TIMEOUT):
        settings = rabbit.model_copy(
            update={**QUICK, "rabbitmq_host": "127.0.0.1", "rabbitmq_port": silent.split(":")[1]}
        )
        with pytest.raises(BrokerUnavailable, match="TimeoutError"), broker_errors():
            await connect(settings, "test")


async def test_broker_is_unavailable_if_a_proxy_closes_each_connection_at_once(rabbit: RabbitSettings) -> None:
    async with closing_address() as (closing, closed), asyncio.timeout(TIMEOUT):
        port = int(closing.split(":")[1])
        settings = rabbit.model_copy(update={**QUICK, "rabbitmq_host": "127.0.0.1", "rabbitmq_port": port})
        # This neither ends the process nor the publishing of events.
        await DeclaredTopology(settings, [], role="test").restore()
        await closed.acquire()
        requested: DeliveryRequested = delivery_requested()
        change = StatusChange(
            delivery_id=requested.delivery_id,
            notification_id=requested.notification_id,
            channel=requested.channel,
            status=DeliveryStatus.SENT,
            round=1,
            attempt=1,
            changed_at=utc_now(),
        )
        events = EventPublisher(settings, "test")
        async with events.running():
            events.publish([change])
            for _ in range(5):
                await closed.acquire()


@pytest.mark.parametrize("first", ["silent", "nobody listens"])
async def test_publisher_and_consumer_start_although_the_first_node_is_gone(
    rabbit: RabbitSettings, postgres: PostgresSettings, first: str
) -> None:
    provider = FakeProvider()
    await prepare_topology(rabbit, [*topology.status_writer(), topology.deliveries(Channel.TELEGRAM)])
    async with silent_address() as silent:
        address = silent if first == "silent" else NOTHING_LISTENS
        settings = behind(rabbit, address)
        async with running_sender(settings, provider), running_status_writer(settings, postgres):
            broker = create_broker(settings, "test")
            # Another connection has found the node that works. This one begins with the other node nevertheless.
            try_first(settings.rabbitmq_nodes(), address)
            async with asyncio.timeout(TIMEOUT):
                await broker.connect()
                requested: DeliveryRequested = delivery_requested()
                publisher = ConfirmedPublisher(broker)
                async with hand_on(rabbit) as hand:
                    await hand.request(requested)

                    async def called() -> bool:
                        return bool(provider.calls)

                    await eventually(called, "the sender gets the message from the node that works")
                assert await publisher.publish([]) == []
            await broker.stop()


async def test_error_names_every_node_that_was_tried() -> None:
    async with silent_address() as silent:
        settings = node_settings(silent, NOTHING_LISTENS, **QUICK)
        with pytest.raises(ConnectionError) as refused:
            await connect(settings, "test")
    assert str(refused.value).startswith(f"{silent}: TimeoutError()")
    assert f"; {NOTHING_LISTENS}: <AMQPConnectionError: " in str(refused.value)


async def test_queue_statistics_come_from_any_node_that_responds(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    await prepare_topology(rabbit, [topology.deliveries(Channel.TELEGRAM)])
    async with silent_address() as silent:
        settings = GatewaySettings.model_validate(
            {
                **rabbit.model_dump(exclude_unset=True),
                **postgres.model_dump(exclude_unset=True),
                "rabbitmq_management_hosts": f"{NOTHING_LISTENS},{silent},{servers.management_url.removeprefix(PLAIN)}",
                "auth": "off",
            }
        )
        client = QueueStatisticsClient(settings, settings.management_urls())
        try:
            for _ in range(2):
                queues = await client.read()
                assert queues is not None
                assert "notifications.telegram" in queues
        finally:
            await client.aclose()


async def test_lost_connection_skips_a_node_that_stays_silent(rabbit: RabbitSettings) -> None:
    async with silent_address() as silent:
        settings = behind(rabbit, silent)
        broker = create_broker(settings, "test")
        connection = await broker.connect()
        assert isinstance(connection, aio_pika.RobustConnection)
        assert connection.transport is not None
        try_first(settings.rabbitmq_nodes(), silent)
        reconnected = asyncio.Event()
        connection.reconnect_callbacks.add(lambda _: reconnected.set())
        await connection.transport.connection.close(ConnectionError("lost"))
        async with asyncio.timeout(TIMEOUT):
            await reconnected.wait()
        await broker.stop()
