"""The outbox relay, tested against PostgreSQL and RabbitMQ."""

from datetime import timedelta

import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_gateway.outbox.lease import Lease, lease_clock
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import hand_on
from support.fakes import CuttableNetwork
from support.outbox import add_row, outbox_is_empty, outbox_rows, published, running_relay
from support.services import eventually, running_gateway

BODY = {"user_id": 1, "message": "hello", "channels": ["telegram", "email"]}


async def test_deliveries_are_published_to_their_channels_and_removed_from_the_outbox(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with running_gateway(rabbit, postgres) as api, hand_on(rabbit) as hand:
        created = (await api.post("/api/notifications", json=BODY)).json()
        await outbox_is_empty(engine)
        for delivery in created["deliveries"]:
            message = await hand.next_message(f"notifications.{delivery['channel']}")
            request = DeliveryRequested.model_validate_json(message.body)
            assert str(request.delivery_id) == message.headers["delivery_id"] == delivery["id"]
            assert (request.attempt, request.round, request.content.message) == (1, 1, "hello")
            assert message.message_id
            assert message.content_type == "application/json"
            assert message.delivery_mode == 2


async def test_row_left_by_a_dead_process_is_published_by_another(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    lost = await add_row(engine, lease=timedelta(seconds=-1))
    never_leased = await add_row(engine)
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        assert set(await published(hand, Channel.TELEGRAM, 2)) == {lost, never_leased}
        await outbox_is_empty(engine)


async def test_leased_and_future_rows_are_not_published(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    await add_row(engine, lease=timedelta(minutes=5))
    await add_row(engine, due=timedelta(minutes=5))
    due = await add_row(engine)
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        assert await published(hand, Channel.TELEGRAM, 1) == [due]
    assert await outbox_rows(engine) == 2
    async with hand_on(rabbit) as hand:
        assert await hand.depth("notifications.telegram") == 0


async def test_row_of_a_sent_delivery_is_not_published_again(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    """A relay that dies between the broker's confirm and its delete leaves the row of a sent delivery behind."""
    sent = await add_row(engine, lease=timedelta(seconds=-1))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET status = 'sent' WHERE id = :id"), {"id": sent})
    open_row = await add_row(engine)
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        assert await published(hand, Channel.TELEGRAM, 1) == [open_row]
        await outbox_is_empty(engine)
        assert await hand.depth("notifications.telegram") == 0


async def test_concurrent_relays_publish_each_row_once(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    rows = {await add_row(engine) for _ in range(300)}
    async with running_relay(rabbit, postgres), running_relay(rabbit, postgres), running_relay(rabbit, postgres):
        await outbox_is_empty(engine)
    async with hand_on(rabbit) as hand:
        assert await hand.depth("notifications.telegram") == 300
        assert set(await published(hand, Channel.TELEGRAM, 300)) == rows


async def test_requests_accepted_before_the_broker_is_available_are_published_later(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    await network.close()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    async with running_gateway(through_network, postgres) as api:
        assert (await api.post("/api/notifications", json=BODY)).status_code == 201
        assert await outbox_rows(engine) == 2
        await network.open()
        await outbox_is_empty(engine)
        async with hand_on(rabbit) as hand:
            assert len(await published(hand, Channel.EMAIL, 1)) == 1
    await network.close()


async def test_broker_outage_loses_no_deliveries(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    async with running_gateway(through_network, postgres) as api:
        await api.post("/api/notifications", json=BODY)
        await outbox_is_empty(engine)
        await network.close()
        for _ in range(5):
            assert (await api.post("/api/notifications", json=BODY)).status_code == 201
        await network.open()
        await outbox_is_empty(engine)
        async with hand_on(rabbit) as hand:
            assert len(set(await published(hand, Channel.EMAIL, 6))) == 6
    await network.close()


async def test_relay_survives_a_frozen_connection(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    # It takes about three heartbeats to notice a frozen connection, so a short heartbeat keeps the test fast.
    rabbit = rabbit.model_copy(update={"rabbitmq_heartbeat": 1})
    network = CuttableNetwork(rabbit.rabbitmq_host, rabbit.rabbitmq_port)
    await network.open()
    through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
    async with running_gateway(through_network, postgres) as api:
        await api.post("/api/notifications", json=BODY)
        await outbox_is_empty(engine)
        network.freeze()
        await api.post("/api/notifications", json=BODY)

        async def has_noticed() -> bool:
            return bool((await api.get("/readyz")).json()["rabbitmq"] != "ready")

        await eventually(has_noticed, "the relay has noticed the lost connection")
        await network.thaw()
        await outbox_is_empty(engine)
        async with hand_on(rabbit) as hand:
            assert len(set(await published(hand, Channel.EMAIL, 2))) == 2
    await network.close()


async def test_relay_gives_up_a_connection_attempt_whose_host_vanished(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        changes = {"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port, "rabbitmq_connect_timeout": 0.5}
        through_network = rabbit.model_copy(update=changes)
        async with running_relay(through_network, postgres), hand_on(rabbit) as hand:
            await network.cut()
            network.freeze()
            accepted = await add_row(engine)
            await network.holds_data.wait()  # the relay's next connection attempt
            network.replace_host()
            assert await published(hand, Channel.TELEGRAM, 1) == [accepted]


async def test_unroutable_delivery_stays_in_the_outbox(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        queue = await hand.channel.get_queue("notifications.telegram")
        await queue.unbind("notifications", "telegram")
        row = await add_row(engine)

        async def has_tried() -> bool:
            return "RabbitMQ is not confirming deliveries over telegram" in caplog.text

        await eventually(has_tried, "the relay has tried to publish")
        assert await outbox_rows(engine) == 1
        await queue.bind("notifications", "telegram")
        assert await published(hand, Channel.TELEGRAM, 1) == [row]
        await outbox_is_empty(engine)


async def test_hand_over_with_an_expiring_lease_is_dropped(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    delivery_id = await add_row(engine, lease=timedelta(minutes=5))
    due = await OutboxStore(engine).take_due(10)
    assert due.held == []  # the row is leased for the hand-over below
    request = DeliveryRequested.model_validate(
        {
            "delivery_id": delivery_id,
            "notification_id": delivery_id,
            "user_id": 1,
            "channel": "telegram",
            "content": {"message": "late"},
        }
    )
    async with running_relay(rabbit, postgres) as relay, hand_on(rabbit) as hand:
        relay.hand_over([request], Lease.beginning(lease_clock() - 25, utc_now()))
        marker = await add_row(engine)
        assert await published(hand, Channel.TELEGRAM, 1) == [marker]
        assert await hand.depth("notifications.telegram") == 0
    assert await outbox_rows(engine) == 1
