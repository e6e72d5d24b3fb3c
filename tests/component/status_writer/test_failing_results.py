"""A delivery that PostgreSQL cannot read or update holds up no results of others, and its results are kept."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryResult, DeliveryResults, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on, prepare_topology
from support.failing_rows import fail_on, more_failures_than, repair, repaired_afterwards, time_out_beyond
from support.gateway import rows
from support.outbox import add_row
from support.services import eventually, running_status_writer

ARCHIVE = "notifications.dead.telegram"
RESULTS = "notifications.results.telegram"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
async def hand(rabbit: RabbitSettings) -> AsyncIterator[Hand]:
    await prepare_topology(rabbit, topology.status_writer(), [topology.EVENTS])
    async with hand_on(rabbit) as hand:
        yield hand


def sent(delivery_id: UUID) -> DeliveryResult:
    return DeliveryResult(
        delivery_id=delivery_id, round=1, attempt=1, failures=0, outcome=Outcome.SENT, started_at=NOW, finished_at=NOW
    )


async def are_sent(engine: AsyncEngine, *delivery_ids: UUID) -> None:
    async def all_are_sent() -> bool:
        found = await rows(engine, "SELECT id FROM deliveries WHERE status = 'sent'")
        return {row.id for row in found}.issuperset(delivery_ids)

    await eventually(all_are_sent, "the deliveries are sent")


@pytest.mark.parametrize(
    ("operation", "code"),
    [("UPDATE", "P0001"), ("UPDATE", "XX001"), ("UPDATE", "22003"), ("UPDATE", "23514"), ("SELECT", "XX001")],
)
async def test_delivery_with_which_statements_fail_delays_no_other_results(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, operation: str, code: str
) -> None:
    bad, *others = [await add_row(engine) for _ in range(11)]
    email = await add_row(engine, channel="email")
    row = "deliveries.id" if operation == "SELECT" else "OLD.id"
    await fail_on(engine, operation, "deliveries", f"{row} = '{bad}'", code)
    async with running_status_writer(rabbit, postgres), repaired_afterwards(engine, "deliveries"):
        await hand.report(*map(sent, [*others[:5], bad, *others[5:]]))
        await are_sent(engine, *others)
        # Until other results are written, the cause may be that PostgreSQL fails on all of them.
        assert await hand.depth(ARCHIVE) == 0
        await hand.report(sent(email), channel=Channel.EMAIL)
        dead = await hand.next_message(ARCHIVE)
        assert code in str(dead.headers["dead_reason"])
        await repair(engine, "deliveries")
        await hand.publish(topology.results(Channel.TELEGRAM).exchange.name, "telegram", dead.body)
        await are_sent(engine, bad)
    assert DeliveryResults.model_validate_json(dead.body).results == (sent(bad),)
    assert await hand.depth(RESULTS) == await hand.depth(ARCHIVE) == 0


@pytest.mark.parametrize("code", ["P0001", "23505"])
async def test_results_wait_if_all_of_them_fail(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    engine: AsyncEngine,
    hand: Hand,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
) -> None:
    monkeypatch.setattr("notify_status_writer.result_writer.FAILURES_PER_PAUSE", 30)
    deliveries = [await add_row(engine) for _ in range(20)]
    await fail_on(engine, "UPDATE", "deliveries", code=code)

    async with running_status_writer(rabbit, postgres), repaired_afterwards(engine, "deliveries"):
        await hand.report(*map(sent, deliveries[:10]))
        await hand.report(*map(sent, deliveries[10:]))
        await more_failures_than(engine, 30, "most results have failed on their own")
        await repair(engine, "deliveries")
        await are_sent(engine, *deliveries)
    assert await hand.depth(RESULTS) == await hand.depth(ARCHIVE) == 0


async def test_many_failing_results_of_a_channel_delay_the_others_only_briefly(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    engine: AsyncEngine,
    hand: Hand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notify_status_writer.result_writer.FAILURES_PER_PAUSE", 150)
    bad = [await add_row(engine, channel="email") for _ in range(200)]
    good = await add_row(engine)
    await fail_on(engine, "UPDATE", "deliveries", "OLD.channel = 'email'")

    async with running_status_writer(rabbit, postgres), repaired_afterwards(engine, "deliveries"):
        await hand.report(*map(sent, bad), channel=Channel.EMAIL)
        await more_failures_than(engine, 1, "the transaction of the failing results has begun")
        await hand.report(sent(good))
        await are_sent(engine, good)


async def test_results_of_others_do_not_wait_until_all_failing_ones_have_been_isolated(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    """Otherwise a constraint that rejects all deliveries of one channel would all but stop the others."""
    bad = [await add_row(engine, channel="email") for _ in range(800)]
    good = await add_row(engine)
    await fail_on(engine, "UPDATE", "deliveries", "OLD.channel = 'email'", "23514")

    async with running_status_writer(rabbit, postgres), repaired_afterwards(engine, "deliveries"):
        for first in range(0, len(bad), 200):
            await hand.report(*map(sent, bad[first : first + 200]), channel=Channel.EMAIL)
        await more_failures_than(engine, 100, "failing results are being isolated")
        await hand.report(sent(good))
        await are_sent(engine, good)
        ((failures,),) = await rows(engine, "SELECT last_value FROM failures")
    assert failures < len(bad)


async def test_failing_results_of_a_message_share_a_dead_letter(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    *bad, other, later = [await add_row(engine) for _ in range(22)]
    ids = ",".join(map(str, bad))
    await fail_on(engine, "UPDATE", "deliveries", f"OLD.id = ANY('{{{ids}}}')", "XX001")
    async with running_status_writer(rabbit, postgres), repaired_afterwards(engine, "deliveries"):
        await hand.report(*map(sent, [*bad, other]))
        await are_sent(engine, other)
        await hand.report(sent(later))
        dead = await hand.next_message(ARCHIVE)
        await are_sent(engine, later)
    assert DeliveryResults.model_validate_json(dead.body).results == tuple(map(sent, bad))
    assert await hand.depth(RESULTS) == await hand.depth(ARCHIVE) == 0


async def test_results_are_written_although_a_whole_batch_takes_too_long(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    """Otherwise the same batch would time out again and again while PostgreSQL is slow."""
    deliveries = [await add_row(engine) for _ in range(20)]
    await time_out_beyond(engine, "deliveries", 3)
    await hand.report(*map(sent, deliveries[:10]))
    await hand.report(*map(sent, deliveries[10:]))
    async with running_status_writer(rabbit, postgres), repaired_afterwards(engine, "deliveries"):
        await are_sent(engine, *deliveries)
    assert await hand.depth(RESULTS) == await hand.depth(ARCHIVE) == 0


async def test_result_with_which_a_statement_times_out_delays_no_other_results(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    """For example, the partition of an earlier week may be locked, or a trigger may wait for a lock."""
    bad, good = await add_row(engine, channel="email"), await add_row(engine)
    await fail_on(engine, "UPDATE", "deliveries", "OLD.channel = 'email'", "57014")
    async with running_status_writer(rabbit, postgres), repaired_afterwards(engine, "deliveries"):
        await hand.report(sent(bad), channel=Channel.EMAIL)
        await more_failures_than(engine, 1, "the statement has timed out")
        await hand.report(sent(good))
        await are_sent(engine, good)
        await more_failures_than(engine, 10, "it times out again although other results have been written")
        await repair(engine, "deliveries")
        await are_sent(engine, bad)
    assert await hand.depth("notifications.results.email") == await hand.depth("notifications.dead.email") == 0
