"""Queues that are missing, or that differ from what the services expect, are restored or named; nothing is lost."""

from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from aio_pika.abc import AbstractIncomingMessage
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.sending.errors import TemporaryFailure
from notify_database.engine import PostgresSettings
from support.amqp import Hand, hand_on, prepare_topology
from support.fakes import FakeProvider
from support.gateway import post
from support.servers import ALL_RIGHTS, WITHOUT_CONFIGURE, Servers, permit
from support.services import (
    delivery_requested,
    eventually,
    running_gateway,
    running_sender,
    running_status_writer,
)

TELEGRAM = topology.delivery_queue_name(Channel.TELEGRAM)
WEBHOOK = topology.delivery_queue_name(Channel.WEBHOOK)


@pytest.fixture
async def started(rabbit: RabbitSettings, postgres: PostgresSettings) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway that has declared its queues."""
    async with running_gateway(rabbit, postgres) as api:

        async def is_connected() -> bool:
            return bool((await api.get("/readyz")).json()["rabbitmq"] == "ready")

        await eventually(is_connected, "the relay is connected")
        yield api


async def becomes_sent(api: httpx.AsyncClient, notification_id: str) -> None:
    async def is_sent() -> bool:
        return bool((await api.get(f"/api/notifications/{notification_id}")).json()["status"] == "sent")

    await eventually(is_sent, "the notification is sent")


async def message_in_new(queue: str, servers: Servers, rabbit: RabbitSettings) -> AbstractIncomingMessage:
    """Wait until the queue has been declared again; return its first message."""

    async def exists() -> bool:
        with servers.management() as management:
            response = management.get(f"/api/queues/{rabbit.rabbitmq_vhost}/{queue}")
            # For a moment, the queue is listed although its process has not started.
            return response.is_success and bool(response.json().get("online"))

    await eventually(exists, f"{queue} is declared again and runs")
    async with hand_on(rabbit) as hand:
        return await hand.next_message(queue)


async def test_gateway_restores_a_deleted_queue_and_publishes_into_it(
    servers: Servers, rabbit: RabbitSettings, started: httpx.AsyncClient
) -> None:
    async with hand_on(rabbit) as hand:
        await hand.channel.queue_delete(TELEGRAM)
    await post(started)
    await message_in_new(TELEGRAM, servers, rabbit)


async def test_gateway_restores_a_deleted_binding(rabbit: RabbitSettings, started: httpx.AsyncClient) -> None:
    async with hand_on(rabbit) as hand:
        queue = await hand.channel.get_queue(TELEGRAM)
        await queue.unbind(topology.NOTIFICATIONS.name, Channel.TELEGRAM.value)
        await post(started)
        await hand.next_message(TELEGRAM)


async def test_sender_restores_a_deleted_retry_queue(rabbit: RabbitSettings, hand: Hand) -> None:
    failing = True

    async def answer(_: DeliveryRequested) -> str:
        if failing:
            raise TemporaryFailure("no")
        return "sent"

    delay = timedelta(milliseconds=50)
    async with running_sender(rabbit, FakeProvider(answer), first_delay=delay):
        await hand.channel.queue_delete(topology.retry_queue_name(Channel.TELEGRAM, delay))
        await hand.request(delivery_requested())
        await hand.results(1)
        failing = False
        [second] = await hand.results(1)
    assert second.provider_message_id == "sent"


async def test_services_recover_after_rabbitmq_has_returned_empty(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with (
        running_gateway(rabbit, postgres) as api,
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
    ):
        await becomes_sent(api, (await post(api))["id"])
        with servers.management() as management:
            management.delete(f"/api/vhosts/{rabbit.rabbitmq_vhost}").raise_for_status()
            management.put(f"/api/vhosts/{rabbit.rabbitmq_vhost}").raise_for_status()
        permit(servers, rabbit, ALL_RIGHTS)
        await becomes_sent(api, (await post(api))["id"])


async def test_service_without_the_right_to_declare_warns_and_continues_once_its_queue_exists(
    servers: Servers, rabbit: RabbitSettings, started: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with hand_on(rabbit) as hand:
        await hand.channel.queue_delete(TELEGRAM)
    permit(servers, rabbit, WITHOUT_CONFIGURE)
    await post(started)

    async def has_warned() -> bool:
        return "could not be declared" in caplog.text

    await eventually(has_warned, "the gateway warns")
    permit(servers, rabbit, ALL_RIGHTS)
    await DeclaredTopology(rabbit, [topology.deliveries(Channel.TELEGRAM)], role="operator").declare()
    await message_in_new(TELEGRAM, servers, rabbit)


async def test_gateway_that_starts_while_one_queue_is_missing_serves_the_other_channels(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_common.rabbitmq.declaration.PROBLEM_INTERVAL", 0.1)
    await prepare_topology(rabbit, topology.gateway(), [topology.EVENTS])
    async with hand_on(rabbit) as hand:
        await hand.channel.queue_delete(WEBHOOK)
    permit(servers, rabbit, WITHOUT_CONFIGURE)
    async with running_gateway(rabbit, postgres) as api, hand_on(rabbit) as hand:
        await post(api, type=None, channels=["telegram", "webhook"])
        await hand.next_message(TELEGRAM)
        permit(servers, rabbit, ALL_RIGHTS)
        await message_in_new(WEBHOOK, servers, rabbit)


async def test_queue_with_other_arguments_stops_only_its_own_channel_until_it_is_deleted(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_common.rabbitmq.declaration.PROBLEM_INTERVAL", 0.1)
    async with hand_on(rabbit) as hand:
        await hand.channel.declare_queue(WEBHOOK, durable=True)  # a classic queue
    async with hand_on(rabbit) as hand, running_gateway(rabbit, postgres) as api:

        async def is_named() -> bool:
            response = await api.get("/readyz")
            return response.status_code == 200 and WEBHOOK in response.json()["rabbitmq"]

        await eventually(is_named, "the gateway is ready and names the queue")
        await post(api, type=None, channels=["telegram", "webhook"])
        await hand.next_message(TELEGRAM)
        assert await hand.depth(WEBHOOK) == 0
        await hand.channel.queue_delete(WEBHOOK)
        await message_in_new(WEBHOOK, servers, rabbit)


async def test_losses_that_no_message_shows_are_restored_from_time_to_time(
    servers: Servers, rabbit: RabbitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_common.rabbitmq.declaration.PROBLEM_INTERVAL", 0.1)
    monkeypatch.setattr("notify_common.rabbitmq.declaration.WATCH_INTERVAL", 0.1)
    retry_exchange = topology.retry_exchange(Channel.TELEGRAM).name
    async with running_sender(rabbit, FakeProvider()), hand_on(rabbit) as hand:
        # Retries can still be published, but they cannot leave their retry queues.
        queue = await hand.channel.get_queue(TELEGRAM)
        await queue.unbind(retry_exchange, topology.DUE_ROUTING_KEY)

        async def is_bound() -> bool:
            with servers.management() as management:
                bindings = management.get(
                    f"/api/bindings/{rabbit.rabbitmq_vhost}/e/{retry_exchange}/q/{TELEGRAM}"
                ).json()
            return topology.DUE_ROUTING_KEY in {binding["routing_key"] for binding in bindings}

        await eventually(is_bound, "the binding is declared again")
