"""One channel's queue that refuses messages, or never confirms them, delays no other channel."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from notify_common.contracts.channels import Channel
from notify_common.errors import PublishFailed
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_gateway.outbox.lane import BATCH_SIZE, MAX_HANDED_OVER, MAX_HANDED_OVER_BYTES
from notify_gateway.outbox.lease import LEASE, Lease, lease_clock
from notify_gateway.outbox.store import DueDeliveries, OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.alarms import listening_process, suspended_queue
from support.amqp import hand_on
from support.gateway import rows
from support.outbox import add_row, outbox_is_empty, outbox_rows, published, running_relay
from support.servers import Servers, in_containers
from support.services import delivery_requested, eventually
from support.unconfirmed import unconfirmed
from typing_extensions import override

DUE_SINCE = "SELECT delivery_id, coalesce(due_since, due_at) AS since FROM outbox WHERE channel = 'webhook' ORDER BY 1"


async def test_deleted_queue_delays_no_other_channel(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        await hand.channel.queue_delete("notifications.webhook")
        for _ in range(300):
            await add_row(engine, channel="webhook")
        due_since = await rows(engine, DUE_SINCE)

        async def each_was_refused() -> bool:
            return not await rows(engine, "SELECT 1 FROM outbox WHERE due_since IS NULL")

        await eventually(each_was_refused, "each row was refused")
        scheduled = {await add_row(engine, due=timedelta(seconds=0.5)) for _ in range(100)}
        assert set(await published(hand, Channel.TELEGRAM, 100)) == scheduled
        assert await rows(engine, DUE_SINCE) == due_since
        backlog = await OutboxStore(engine).backlog()
        assert (backlog.rows, backlog.unknown) == (300, 0)
        [age] = await rows(engine, "SELECT extract(epoch FROM now() - min(due_since)) AS age FROM outbox")
        assert backlog.oldest <= age.age


async def test_queue_that_never_confirms_delays_no_other_channel(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    publisher = unconfirmed(Channel.WEBHOOK)
    broken = await add_row(engine, channel="webhook")
    async with running_relay(rabbit, postgres, publisher), hand_on(rabbit) as hand:
        await publisher.began.wait()
        others = {await add_row(engine, channel=channel) for channel in ("telegram", "email") for _ in range(300)}
        found = [*await published(hand, Channel.TELEGRAM, 300), *await published(hand, Channel.EMAIL, 300)]
        assert set(found) == others

        async def only_the_broken_row_is_left() -> bool:
            return [row.delivery_id for row in await rows(engine, "SELECT delivery_id FROM outbox")] == [broken]

        await eventually(only_the_broken_row_is_left, "the other rows are deleted")
        publisher.ended.set()


@pytest.mark.skipif(in_containers(), reason="requires a private server")
async def test_queue_that_commits_nothing_delays_no_other_channel(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, servers: Servers, tmp_path: Path
) -> None:
    handed_over = [delivery_requested(channel=Channel.WEBHOOK) for _ in range(BATCH_SIZE)]

    class HandingOver(OutboxStore):
        @override
        async def take_due(self, limit: int, *arguments: Any, **options: Any) -> DueDeliveries:
            due = await super().take_due(limit, *arguments, **options)
            if due.held:
                # The lane gets as many new deliveries at the same time.
                relay.hand_over(handed_over, Lease.beginning(lease_clock(), utc_now() + LEASE))
                handed_over.clear()
            return due

    async with running_relay(rabbit, postgres, outbox_class=HandingOver) as relay, hand_on(rabbit) as hand:
        pid = listening_process(servers.rabbit.rabbitmq_port)
        async with suspended_queue(pid, tmp_path, rabbit.rabbitmq_vhost, "notifications.webhook"):
            for _ in range(BATCH_SIZE):
                await add_row(engine, channel="webhook", due=timedelta(hours=1))
            async with engine.begin() as connection:  # so that one poll finds all of them
                await connection.execute(text("UPDATE outbox SET due_at = now()"))
            others = {await add_row(engine) for _ in range(300)}
            assert set(await published(hand, Channel.TELEGRAM, 300)) == others
            assert not handed_over


async def test_row_of_an_unknown_channel_is_left_alone_and_counted(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = {await add_row(engine, channel="pigeon", names_channel=names) for names in (True, False)}
    known = {await add_row(engine) for _ in range(5)}
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        assert set(await published(hand, Channel.TELEGRAM, 5)) == known

        async def only_unknown_rows_are_left() -> bool:
            return await outbox_rows(engine) == 2

        await eventually(only_unknown_rows_are_left, "the known rows are deleted")
    left = await rows(engine, "SELECT delivery_id, channel, leased_until FROM outbox")
    assert {tuple(row) for row in left} == {(row, "pigeon", None) for row in unknown}
    outbox = OutboxStore(engine)
    for _ in range(2):
        backlog = await outbox.backlog()
        assert (backlog.rows, backlog.unknown) == (2, 2)
        assert backlog.oldest > 0
    assert caplog.text.count("unknown channels") == 1


async def test_row_that_an_older_version_wrote_without_a_channel_is_published(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    old = await add_row(engine, names_channel=False)
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        assert await published(hand, Channel.TELEGRAM, 1) == [old]
        await outbox_is_empty(engine)


async def test_hand_over_is_bounded_in_deliveries_and_in_bytes_for_each_channel(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    html = "x" * 65_536
    large = delivery_requested(channel=Channel.EMAIL, content={"message": "x", "email": {"html": html}})
    small = delivery_requested()
    async with running_relay(rabbit, postgres) as relay:
        assert relay.channels_with_room([small, large]) == {Channel.TELEGRAM, Channel.EMAIL}
        assert relay.channels_with_room([small, *[large] * (MAX_HANDED_OVER_BYTES // len(html))]) == {Channel.TELEGRAM}
        assert relay.channels_with_room([large, *[small] * (MAX_HANDED_OVER + 1)]) == {Channel.EMAIL}


async def test_rows_without_a_notification_delay_no_others(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    detached = [await add_row(engine, due=timedelta(minutes=-1)) for _ in range(BATCH_SIZE)]
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM notifications"))  # as if their partition were detached
    other = await add_row(engine)
    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
        assert await published(hand, Channel.TELEGRAM, 1) == [other]
    assert await outbox_rows(engine) == len(detached)
    assert caplog.text.count("without a notification") == 1


async def test_expired_deliveries_that_another_transaction_has_locked_delay_no_others(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    for _ in range(BATCH_SIZE):
        await add_row(engine, due=timedelta(minutes=-1))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE notifications SET expires_at = now()"))
    other = await add_row(engine)
    async with engine.begin() as operator:
        await operator.execute(text("SELECT FROM deliveries WHERE id <> :other FOR UPDATE"), {"other": other})
        async with running_relay(rabbit, postgres), hand_on(rabbit) as hand:
            assert await published(hand, Channel.TELEGRAM, 1) == [other]
            assert await outbox_rows(engine) >= BATCH_SIZE
    async with running_relay(rabbit, postgres):
        await outbox_is_empty(engine)
    [ended] = await rows(engine, "SELECT count(*) AS count FROM deliveries WHERE status = 'expired'")
    assert ended.count == BATCH_SIZE


async def test_defect_in_a_lane_ends_the_relay(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    class Defect(Exception):
        pass

    class Defective(ConfirmedPublisher):
        @override
        async def publish(self, messages: Sequence[OutgoingMessage], **options: Any) -> list[PublishFailed | None]:
            raised.set()
            raise Defect

    raised = asyncio.Event()
    await add_row(engine)
    with pytest.RaisesGroup(Defect):
        async with running_relay(rabbit, postgres, Defective):
            await raised.wait()
