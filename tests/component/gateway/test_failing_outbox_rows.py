"""An outbox row that PostgreSQL cannot read, update or delete holds up no others, and repeats no delivery."""

from datetime import timedelta
from uuid import UUID

import pytest
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on
from support.failing_rows import fail_on, more_failures_than, repair, repaired_afterwards
from support.gateway import rows
from support.outbox import add_row, outbox_is_empty, outbox_rows, published, running_relay
from support.roles import as_service
from support.services import eventually

SKIPPING_OUTBOX = "notify_gateway.outbox.skipping_outbox"
UNTAKABLE = [
    ("UPDATE", "outbox", "OLD.delivery_id = '{}'", "P0001"),
    ("UPDATE", "outbox", "OLD.delivery_id = '{}'", "22023"),
    ("UPDATE", "outbox", "OLD.delivery_id = '{}'", "23514"),
    ("SELECT", "deliveries", "deliveries.id = '{}'", "XX001"),
]


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SKIPPING_OUTBOX}.RETRY_INTERVAL", 1.0)
    monkeypatch.setattr("notify_gateway.outbox.store.LEASE", timedelta(seconds=1))


async def published_set(hand: Hand, count: int, channel: Channel = Channel.TELEGRAM) -> set[UUID]:
    """Return the next `count` published deliveries."""
    return set(await published(hand, channel, count))


@pytest.mark.parametrize(("operation", "table", "condition", "code"), UNTAKABLE)
async def test_row_that_cannot_be_taken_delays_no_others(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    engine: AsyncEngine,
    *,
    operation: str,
    table: str,
    condition: str,
    code: str,
) -> None:
    bad = await add_row(engine, due=timedelta(minutes=-1))
    await fail_on(engine, operation, table, condition.format(bad), code)
    others = [await add_row(engine) for _ in range(50)]
    email = [await add_row(engine, channel="email") for _ in range(50)]
    relay = running_relay(rabbit, as_service(postgres, "gateway"))
    async with relay, hand_on(rabbit) as hand, repaired_afterwards(engine, table):
        assert await published_set(hand, 50) == set(others)
        assert await published_set(hand, 50, Channel.EMAIL) == set(email)
        later = await add_row(engine)
        assert await published(hand, Channel.TELEGRAM, 1) == [later]
        await repair(engine, table)
        assert await published(hand, Channel.TELEGRAM, 1) == [bad]
        await outbox_is_empty(engine)


async def test_all_rows_are_published_although_none_could_be_taken_for_a_while(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SKIPPING_OUTBOX}.MAX_UNTAKABLE", 10)
    ids = [await add_row(engine) for _ in range(30)]
    await fail_on(engine, "UPDATE", "outbox")

    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand, repaired_afterwards(engine, "outbox"):
        await more_failures_than(engine, 40, "statements with all rows have failed")
        await repair(engine, "outbox")
        assert await published_set(hand, 30) == set(ids)
        await outbox_is_empty(engine)


async def test_delivery_is_published_once_although_its_row_cannot_be_deleted(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    bad = await add_row(engine, due=timedelta(minutes=-1))
    await fail_on(engine, "DELETE", "outbox", f"OLD.delivery_id = '{bad}'", "XX001")
    others = [await add_row(engine) for _ in range(20)]

    async def lease_has_ended() -> bool:
        return bool(await rows(engine, "SELECT 1 FROM outbox WHERE leased_until < now() - interval '1 second'"))

    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand, repaired_afterwards(engine, "outbox"):
        assert await published_set(hand, 21) == {bad, *others}
        await eventually(lease_has_ended, "the lease has ended")
        later = await add_row(engine)
        assert await published(hand, Channel.TELEGRAM, 1) == [later]
        await repair(engine, "outbox")
        await outbox_is_empty(engine)
        assert await hand.depth("notifications.telegram") == 0


async def test_channels_whose_rows_cannot_be_deleted_at_the_same_time_do_not_end_the_relay(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SKIPPING_OUTBOX}.MAX_UNDELETABLE", 12)
    await fail_on(engine, "DELETE", "outbox")
    telegram = [await add_row(engine) for _ in range(10)]
    email = [await add_row(engine, channel="email") for _ in range(10)]

    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand, repaired_afterwards(engine, "outbox"):
        assert await published_set(hand, 10) == set(telegram)
        assert await published_set(hand, 10, Channel.EMAIL) == set(email)
        for channel in ("telegram", "email"):
            await add_row(engine, channel=channel)
        await more_failures_than(engine, 42, "further rows were to be deleted")
        await repair(engine, "outbox")
        await outbox_is_empty(engine)


async def test_channel_waits_while_too_many_rows_cannot_be_deleted(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SKIPPING_OUTBOX}.MAX_UNDELETABLE", 3)
    await fail_on(engine, "DELETE", "outbox")
    first = [await add_row(engine) for _ in range(10)]

    async with running_relay(rabbit, postgres), hand_on(rabbit) as hand, repaired_afterwards(engine, "outbox"):
        assert await published_set(hand, 10) == set(first)
        later = [await add_row(engine) for _ in range(10)]
        await more_failures_than(engine, 20, "the rows were to be deleted several times")
        assert await outbox_rows(engine) == 20
        assert await hand.depth("notifications.telegram") == 0
        await repair(engine, "outbox")
        assert await published_set(hand, 10) == set(later)
        await outbox_is_empty(engine)
        assert await hand.depth("notifications.telegram") == 0
