"""The status writer, tested against PostgreSQL and RabbitMQ."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import (
    DeliveryResult,
    DeliveryResults,
    DeliveryStatus,
    ErrorClass,
    Outcome,
    StatusChanges,
)
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import ROWS_BY_KEY, PostgresSettings, create_engine
from notify_database.errors import DataRejected
from notify_status_writer.application import RESULTS_PREFETCH
from notify_status_writer.delivery_state import Reported
from notify_status_writer.result_store import ResultStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on, prepare_topology
from support.fakes import FakeProvider
from support.services import eventually, running_sender, running_status_writer

ARCHIVE = "notifications.dead.telegram"
INBOXES = ("notifications.dead.inbox", "notifications.dead.failed")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ADD = text("""
    WITH n AS (INSERT INTO notifications VALUES (:notification_id, 1, 'x', NULL, NULL, now(), 'default') RETURNING id)
    INSERT INTO deliveries SELECT CAST(:delivery_id AS uuid), id, 'telegram', NULL, 'pending', 1, 0, 0, now() FROM n
    RETURNING id
""")
DELIVERY = text("SELECT status, round, attempt, failures FROM deliveries WHERE id = :id")
ATTEMPTS = text("SELECT attempt, outcome, error_class FROM attempts WHERE delivery_id = :id ORDER BY attempt")

SCANNED = text(r"""
    SELECT relname FROM pg_stat_user_tables
    WHERE relname SIMILAR TO '(attempts|deliveries)\_%' AND seq_scan + idx_scan > 0 ORDER BY relname
""")
FIRST_PARTITIONS = text("""
    SELECT DISTINCT tableoid::regclass::text AS name FROM attempts
    UNION SELECT DISTINCT tableoid::regclass::text FROM deliveries ORDER BY name
""")


@pytest.fixture
async def hand(rabbit: RabbitSettings) -> AsyncIterator[Hand]:
    bindings = [*topology.status_writer(), topology.deliveries(Channel.TELEGRAM)]
    await prepare_topology(rabbit, bindings, [topology.EVENTS])
    async with hand_on(rabbit) as hand:
        yield hand


async def apply(engine: AsyncEngine, *results: DeliveryResult) -> None:
    """Apply results that telegram senders reported."""
    await ResultStore(engine).apply([Reported(each, Channel.TELEGRAM) for each in results])


async def add_delivery(engine: AsyncEngine) -> UUID:
    delivery_id, notification_id = new_id(utc_now()), new_id(utc_now())
    async with engine.begin() as connection:
        await connection.execute(ADD, {"delivery_id": delivery_id, "notification_id": notification_id})
    return delivery_id


async def delivery_row(engine: AsyncEngine, delivery_id: UUID) -> tuple[Any, ...]:
    async with engine.connect() as connection:
        return tuple((await connection.execute(DELIVERY, {"id": delivery_id})).one())


async def attempt_rows(engine: AsyncEngine, delivery_id: UUID) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(ATTEMPTS, {"id": delivery_id})]


async def change(engine: AsyncEngine, delivery_id: UUID, columns: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(f"UPDATE deliveries SET {columns} WHERE id = :id"), {"id": delivery_id})  # noqa: S608


async def forbid_ninth_attempts(engine: AsyncEngine) -> None:
    """Add a constraint, because no other rejects a result that the status writer accepts."""
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE deliveries ADD CONSTRAINT of_this_test CHECK (attempt <> 9)"))


async def has_status(engine: AsyncEngine, delivery_id: UUID, status: DeliveryStatus) -> None:
    async def reached() -> bool:
        return bool((await delivery_row(engine, delivery_id))[0] == status)

    await eventually(reached, f"the delivery is {status}")


def result(
    delivery_id: UUID, outcome: Outcome = Outcome.SENT, attempt: int = 1, round_: int = 1, failures: int | None = None
) -> DeliveryResult:
    failed = outcome in {Outcome.RETRYING, Outcome.FAILED}
    return DeliveryResult(
        delivery_id=delivery_id,
        round=round_,
        attempt=attempt,
        failures=(attempt if failed else 0) if failures is None else failures,
        outcome=outcome,
        error_class=ErrorClass.TEMPORARY if failed else None,
        started_at=NOW,
        finished_at=NOW + timedelta(seconds=1),
    )


async def test_results_touch_only_the_partitions_of_their_deliveries(
    engine: AsyncEngine, postgres: PostgresSettings
) -> None:
    """Force a generic plan, which PostgreSQL may choose for a prepared statement."""
    generic = create_engine(postgres, pool_size=1, planner={**ROWS_BY_KEY, "plan_cache_mode": "force_generic_plan"})
    ids = [await add_delivery(engine) for _ in range(3)]
    for outcome in (Outcome.RETRYING, Outcome.SENT):
        await apply(generic, *(result(each, outcome) for each in ids))
    async with generic.connect() as connection:
        await connection.execute(text("SELECT pg_stat_force_next_flush()"))
        await connection.commit()
        scanned = (await connection.execute(SCANNED)).scalars().all()
        assert scanned == (await connection.execute(FIRST_PARTITIONS)).scalars().all()
    await generic.dispose()
    assert [(await delivery_row(engine, each))[0] for each in ids] == ["sent"] * 3


async def test_result_updates_the_status_and_adds_an_attempt(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    delivery_id = await add_delivery(engine)
    async with running_status_writer(rabbit, postgres):
        await hand.report(result(delivery_id, Outcome.RETRYING), result(delivery_id, Outcome.SENT, attempt=2))
        await has_status(engine, delivery_id, DeliveryStatus.SENT)
    assert await delivery_row(engine, delivery_id) == ("sent", 1, 2, 1)
    assert await attempt_rows(engine, delivery_id) == [(1, "retrying", "temporary"), (2, "sent", None)]
    assert await hand.depth("notifications.results.telegram") == 0


async def test_results_of_every_channel_and_of_older_senders_are_read(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    reports = {channel: await add_delivery(engine) for channel in (None, *Channel)}
    for channel in Channel:
        await change(engine, reports[channel], f"channel = '{channel}'")
    async with running_status_writer(rabbit, postgres) as writer:
        assert len({subscription.queue for subscription in writer.subscriptions}) == len(reports) + 2 + len(Channel)
        for channel, delivery_id in reports.items():
            await hand.report(result(delivery_id), channel=channel)
        for delivery_id in reports.values():
            await has_status(engine, delivery_id, DeliveryStatus.SENT)


async def test_result_and_dead_letter_survive_any_number_of_lost_connections(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    """A long database outage with an unstable network redelivers the same messages again and again."""
    reported, dead = await add_delivery(engine), await add_delivery(engine)
    await hand.report(result(reported))
    await hand.publish("notifications", "telegram", b"\xff", {"delivery_id": str(dead), "round": 1})
    await (await (await hand.channel.get_queue("notifications.telegram")).get()).reject(requeue=False)
    async with await aio_pika.connect(rabbit.amqp_url()) as connection:
        for _ in range(150):
            async with connection.channel() as channel:
                for queue in ("notifications.results.telegram", "notifications.dead.failed"):
                    await (await channel.get_queue(queue, ensure=False)).get(fail=False)
    async with running_status_writer(rabbit, postgres):
        await has_status(engine, reported, DeliveryStatus.SENT)
        await has_status(engine, dead, DeliveryStatus.FAILED)
    assert await hand.depth("notifications.dead") == 1


async def test_results_may_repeat_and_arrive_out_of_order(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    delivery_id, last = await add_delivery(engine), await add_delivery(engine)
    first, second, third = (
        result(delivery_id, outcome, attempt)
        for attempt, outcome in enumerate((Outcome.RETRYING, Outcome.RETRYING, Outcome.FAILED), start=1)
    )
    async with running_status_writer(rabbit, postgres):
        for batch in ((third,), (second, third), (first,), (third, first, second)):
            await hand.report(*batch)
        await hand.report(result(last))
        await has_status(engine, last, DeliveryStatus.SENT)
    assert await delivery_row(engine, delivery_id) == ("failed", 1, 3, 3)
    assert [attempt[:2] for attempt in await attempt_rows(engine, delivery_id)] == [
        (1, "retrying"), (2, "retrying"), (3, "failed")
    ]  # fmt: skip


results_of_one = st.lists(
    st.tuples(
        st.sampled_from(Outcome),
        st.integers(min_value=1, max_value=3),
        st.integers(min_value=1, max_value=2),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(results_of_one, st.randoms(use_true_random=False))
async def test_final_rows_do_not_depend_on_the_order_or_batching_of_results(
    engine: AsyncEngine, reported: list[tuple[Outcome, int, int]], random: Any
) -> None:
    at_once, shuffled = await add_delivery(engine), await add_delivery(engine)
    for delivery_id in (at_once, shuffled):
        await change(engine, delivery_id, "round = 3")  # no result may be ahead of the stored round

    def results_for(delivery_id: UUID) -> list[DeliveryResult]:
        return [result(delivery_id, outcome, attempt, round_, 1) for outcome, attempt, round_ in reported]

    await apply(engine, *results_for(at_once))
    one_by_one = results_for(shuffled)
    one_by_one += random.sample(one_by_one, k=random.randint(0, len(one_by_one)))
    random.shuffle(one_by_one)
    for single in one_by_one:
        await apply(engine, single)
    assert await delivery_row(engine, at_once) == await delivery_row(engine, shuffled)
    # Retrying and throttled share a rank, so the one that arrives first is kept.
    assert by_rank(await attempt_rows(engine, at_once)) == by_rank(await attempt_rows(engine, shuffled))


def by_rank(attempts: list[tuple[Any, ...]]) -> list[tuple[int, str]]:
    return [(number, "retrying" if outcome == "throttled" else outcome) for number, outcome, _ in attempts]


async def test_attempt_is_replaced_only_by_an_outcome_of_higher_rank(engine: AsyncEngine) -> None:
    delivery_id = await add_delivery(engine)
    for outcome, stored in (
        (Outcome.THROTTLED, "throttled"),
        (Outcome.RETRYING, "throttled"),
        (Outcome.FAILED, "failed"),
        (Outcome.RETRYING, "failed"),
        (Outcome.SENT, "sent"),
        (Outcome.FAILED, "sent"),
    ):
        await apply(engine, result(delivery_id, outcome, failures=1))
        assert [outcome for _, outcome, _ in await attempt_rows(engine, delivery_id)] == [stored]


async def test_result_from_an_earlier_round_only_adds_an_attempt_unless_sent(engine: AsyncEngine) -> None:
    delivery_id = await add_delivery(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET round = 2, attempt = 1"))
    await apply(engine, result(delivery_id, Outcome.FAILED, attempt=2))
    assert await delivery_row(engine, delivery_id) == ("pending", 2, 2, 0)
    await apply(engine, result(delivery_id, Outcome.SENT, attempt=3))
    assert (await delivery_row(engine, delivery_id))[:3] == ("sent", 2, 3)
    assert [row[:2] for row in await attempt_rows(engine, delivery_id)] == [(2, "failed"), (3, "sent")]


async def test_expiry_adds_no_attempt(engine: AsyncEngine) -> None:
    delivery_id = await add_delivery(engine)
    await apply(engine, result(delivery_id, Outcome.EXPIRED, attempt=0))
    assert await delivery_row(engine, delivery_id) == ("expired", 1, 0, 0)
    assert await attempt_rows(engine, delivery_id) == []


async def test_cancellation_reason_is_cleared_if_the_delivery_was_sent(engine: AsyncEngine) -> None:
    delivery_id = await add_delivery(engine)
    reason = text("SELECT status, reason FROM deliveries")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET status = 'cancelled', reason = 'opted_out'"))
    # A relay had published the delivery before it was cancelled, but died before it deleted the outbox row.
    await apply(engine, result(delivery_id))
    async with engine.connect() as connection:
        assert tuple((await connection.execute(reason)).one()) == ("sent", None)


async def test_concurrent_updates_of_the_same_deliveries_do_not_deadlock(engine: AsyncEngine) -> None:
    deliveries = [await add_delivery(engine) for _ in range(20)]
    forwards = [result(delivery_id) for delivery_id in deliveries]
    await asyncio.gather(*(apply(engine, *forwards[:: 1 if number % 2 else -1]) for number in range(20)))
    assert {(await delivery_row(engine, delivery_id))[0] for delivery_id in deliveries} == {"sent"}


async def test_status_update_touches_no_index(engine: AsyncEngine) -> None:
    deliveries = [await add_delivery(engine) for _ in range(50)]
    for delivery_id in deliveries:
        await apply(engine, result(delivery_id))
    counts = text("""
        SELECT sum(n_tup_upd), sum(n_tup_hot_upd) FROM pg_stat_user_tables WHERE relname LIKE 'deliveries%'
    """)

    async def all_hot() -> bool:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_stat_force_next_flush()"))
            updates, hot = (await connection.execute(counts)).one()
        return bool(updates == hot == 50)

    await eventually(all_hot, "every update was a HOT update")


async def test_bad_result_does_not_affect_the_others_in_its_message(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    good, another, rejected, later = [await add_delivery(engine) for _ in range(4)]
    items = [
        result(good).model_dump(mode="json"),
        {"delivery_id": "not an id"},
        result(uuid4()).model_dump(mode="json"),  # unknown delivery
        result(rejected, Outcome.RETRYING, attempt=9).model_dump(mode="json"),
        result(another).model_dump(mode="json"),
    ]
    await forbid_ninth_attempts(engine)
    async with running_status_writer(rabbit, postgres):
        await hand.publish("notifications.results.telegram", "telegram", json.dumps({"version": 1, "results": items}))
        await has_status(engine, good, DeliveryStatus.SENT)
        await has_status(engine, another, DeliveryStatus.SENT)
        # What PostgreSQL rejects is dead-lettered only after results of later messages have been written.
        await hand.report(result(later))
        reasons = [(await hand.next_message(ARCHIVE)).headers["dead_reason"] for _ in range(3)]
    assert {str(reason).split()[0] for reason in reasons} == {"unreadable", "unknown", "CheckViolationError"}


async def test_messages_without_a_readable_result_do_not_hold_up_the_others(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    delivery_id = await add_delivery(engine)
    queue = topology.results(Channel.TELEGRAM)
    async with running_status_writer(rabbit, postgres):
        for _ in range(RESULTS_PREFETCH):
            await hand.publish(queue.exchange.name, queue.routing_key, '{"version": 1, "results": []}')
            await hand.publish(queue.exchange.name, queue.routing_key, '{"version": 1, "results": [{}]}')
        await hand.report(result(delivery_id, Outcome.SENT))

        async def is_sent() -> bool:
            return bool((await delivery_row(engine, delivery_id))[0] == "sent")

        await eventually(is_sent, "the result is applied")
        for _ in range(RESULTS_PREFETCH):
            await hand.next_message(ARCHIVE)
    assert await hand.depth(queue.queue.name) == 0


async def test_result_is_applied_to_a_delivery_whose_channel_this_version_does_not_know(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    """After a rollback, deliveries over a newer version's channel still get their results, but no event."""
    newer, known = await add_delivery(engine), await add_delivery(engine)
    events = await hand.listen("notifications.events", "#")
    await change(engine, newer, "channel = 'carrier_pigeon'")
    async with running_status_writer(rabbit, postgres):
        # It came to the shared queue, because this version does not read that of the newer channel.
        await hand.report(result(newer), result(known), channel=None)
        await has_status(engine, newer, DeliveryStatus.SENT)
        await has_status(engine, known, DeliveryStatus.SENT)
        message = await asyncio.wait_for(events.get(), 20)
    assert [each.delivery_id for each in StatusChanges.model_validate_json(message.body).changes] == [known]
    assert await hand.depth(ARCHIVE) == await hand.depth("notifications.dead") == 0


async def test_result_that_fails_unexpectedly_is_dead_lettered_without_its_neighbours(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    deliveries = [await add_delivery(engine) for _ in range(8)]
    newer = deliveries[3]
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE deliveries DROP CONSTRAINT IF EXISTS deliveries_status_check"))
    await change(engine, newer, "status = 'of a newer version'")
    for delivery_id in deliveries[:4]:
        await hand.report(result(delivery_id))
    await hand.report(*map(result, deliveries[4:]))
    async with running_status_writer(rabbit, postgres):
        dead = await hand.next_message(ARCHIVE)
        for delivery_id in deliveries:
            if delivery_id != newer:
                await has_status(engine, delivery_id, DeliveryStatus.SENT)
    assert DeliveryResults.model_validate_json(dead.body).results == (result(newer),)
    assert dead.headers["dead_reason"] == "bug: ValueError"
    assert await hand.depth(ARCHIVE) == 0


async def test_batch_that_violates_a_constraint_is_rejected_as_a_whole(engine: AsyncEngine) -> None:
    good, bad = await add_delivery(engine), await add_delivery(engine)
    await forbid_ninth_attempts(engine)
    with pytest.raises(DataRejected, match="23514"):
        await apply(engine, result(good), result(bad, Outcome.RETRYING, attempt=9))
    assert (await delivery_row(engine, good))[0] == "pending"


async def test_unreadable_message_is_dead_lettered_and_changes_nothing(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    delivery_id, last = await add_delivery(engine), await add_delivery(engine)
    async with running_status_writer(rabbit, postgres):
        await hand.publish("notifications.results.telegram", "telegram", b"\xff", {"delivery_id": str(delivery_id)})
        assert (await hand.next_message(ARCHIVE)).body == b"\xff"
        await hand.report(result(last))
        await has_status(engine, last, DeliveryStatus.SENT)

        async def inbox_is_empty() -> bool:
            return await hand.depth("notifications.dead.telegram.failed") == 0

        await eventually(inbox_is_empty, "the status writer has handled the dead letter")
    assert await delivery_row(engine, delivery_id) == ("pending", 1, 0, 0)


@pytest.mark.parametrize("readable", [True, False])
async def test_dead_lettered_delivery_is_marked_as_failed(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    engine: AsyncEngine,
    hand: Hand,
    caplog: pytest.LogCaptureFixture,
    readable: bool,
) -> None:
    delivery_id = await add_delivery(engine)
    body = {
        "version": 1, "delivery_id": str(delivery_id), "notification_id": str(uuid4()), "user_id": 1,
        "channel": "telegram", "content": {"message": "x"}, "attempt": 1, "failures": 0,
    }  # fmt: skip
    await hand.publish(
        "notifications",
        "telegram",
        json.dumps(body) if readable else b"\xff",
        {} if readable else {"delivery_id": str(delivery_id), "round": 1},
    )
    message = await (await hand.channel.get_queue("notifications.telegram")).get()
    await message.reject(requeue=False)
    async with running_status_writer(rabbit, postgres):
        await has_status(engine, delivery_id, DeliveryStatus.FAILED)

        async def inboxes_are_empty() -> bool:
            return [await hand.depth(queue) for queue in INBOXES] == [0, 0]

        await eventually(inboxes_are_empty, "both copies have been handled")
    assert await attempt_rows(engine, delivery_id) == [(1, "failed", "poison")]
    assert await hand.depth("notifications.dead") == 1
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["the message of a delivery was dead-lettered"]  # once, although there are two inboxes


async def test_second_copy_of_a_dead_letter_is_reported_like_the_first(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    engine: AsyncEngine,
    hand: Hand,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The copy in the other inbox may be handled first, and only one of the two is reported as an error."""
    delivery_id = await add_delivery(engine)
    await apply(engine, result(delivery_id, outcome=Outcome.FAILED))
    await hand.publish("notifications", "telegram", b"\xff", {"delivery_id": str(delivery_id), "round": 1})
    await (await (await hand.channel.get_queue("notifications.telegram")).get()).reject(requeue=False)
    async with running_status_writer(rabbit, postgres):

        async def inboxes_are_empty() -> bool:
            return [await hand.depth(queue) for queue in INBOXES] == [0, 0]

        await eventually(inboxes_are_empty, "both copies have been handled")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["the message of a delivery was dead-lettered"]


async def test_delivery_dead_lettered_after_a_retry_is_marked_as_failed(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    """RabbitMQ dead-letters a retried message twice, the first time when its retry delay has passed."""
    delivery_id, delay = await add_delivery(engine), timedelta(milliseconds=10)
    await prepare_topology(rabbit, topology.retries(Channel.TELEGRAM, [delay]))
    headers = {"delivery_id": str(delivery_id), "round": 1}
    await hand.publish("notifications.telegram.retry", topology.retry_routing_key(delay), b"\xff", headers)
    async with running_sender(rabbit, FakeProvider()), running_status_writer(rabbit, postgres):
        await has_status(engine, delivery_id, DeliveryStatus.FAILED)


async def test_dead_letter_from_an_earlier_round_or_for_a_final_delivery_changes_nothing(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    second_round, sent = await add_delivery(engine), await add_delivery(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET round = 2 WHERE id = :id"), {"id": second_round})
    await apply(engine, result(sent))
    queue = await hand.channel.get_queue("notifications.telegram")
    for delivery_id in (second_round, sent):
        await hand.publish("notifications", "telegram", b"\xff", {"delivery_id": str(delivery_id), "round": 1})
        await (await queue.get()).reject(requeue=False)
    async with running_status_writer(rabbit, postgres):

        async def inbox_is_empty() -> bool:
            return await hand.depth("notifications.dead") == 2 and await hand.depth("notifications.dead.inbox") == 0

        await eventually(inbox_is_empty, "the status writer has handled both dead letters")
    assert (await delivery_row(engine, second_round))[:2] == ("pending", 2)
    assert await attempt_rows(engine, sent) == [(1, "sent", None)]


async def test_status_change_is_published_once_after_commit(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    delivery_id, last = await add_delivery(engine), await add_delivery(engine)
    events = await hand.listen("notifications.events", "telegram.*")
    async with running_status_writer(rabbit, postgres):
        await hand.report(result(delivery_id))
        message = await asyncio.wait_for(events.get(), 20)
        assert message.routing_key == "telegram.sent"
        [change] = StatusChanges.model_validate_json(message.body).changes
        assert (change.delivery_id, change.status, change.attempt) == (delivery_id, DeliveryStatus.SENT, 1)
        assert (await delivery_row(engine, delivery_id))[0] == "sent"
        await hand.report(result(delivery_id))
        await hand.report(result(last))
        message = await asyncio.wait_for(events.get(), 20)
        assert [change.delivery_id for change in StatusChanges.model_validate_json(message.body).changes] == [last]


async def test_results_are_written_after_a_table_lock_and_a_lost_database_connection(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    deliveries = [await add_delivery(engine) for _ in range(30)]
    async with running_status_writer(rabbit, postgres):
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE"))
            for delivery_id in deliveries:
                await hand.report(result(delivery_id))
            # Terminate the status writer's connection in the middle of a statement.
            await lock.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                     " AND datname = current_database()")
            )  # fmt: skip
        for delivery_id in deliveries:
            await has_status(engine, delivery_id, DeliveryStatus.SENT)
    assert await hand.depth("notifications.results.telegram") == 0


async def test_unpublishable_events_do_not_delay_results(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    deliveries = [await add_delivery(engine) for _ in range(3)]
    nowhere = rabbit.model_copy(update={"rabbitmq_port": 1})
    async with running_status_writer(rabbit, postgres, events_to=nowhere):
        for delivery_id in deliveries:
            await hand.report(result(delivery_id))
            await has_status(engine, delivery_id, DeliveryStatus.SENT)
    assert await hand.depth("notifications.results.telegram") == 0  # the results were acked


async def test_results_of_a_locked_delivery_wait_without_delaying_others(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    locked, other = await add_delivery(engine), await add_delivery(engine)
    async with running_status_writer(rabbit, postgres):
        async with engine.begin() as operator:
            await operator.execute(text("SELECT FROM deliveries WHERE id = :id FOR UPDATE"), {"id": locked})
            await hand.report(result(locked, Outcome.SENT), result(other, Outcome.SENT))
            await has_status(engine, other, DeliveryStatus.SENT)
            assert (await delivery_row(engine, locked))[0] == DeliveryStatus.PENDING
        await has_status(engine, locked, DeliveryStatus.SENT)
    assert await hand.depth("notifications.results.telegram") == 0


@pytest.mark.parametrize(
    "statement",
    ["SELECT FROM attempts WHERE delivery_id = :id FOR UPDATE", "DELETE FROM attempts WHERE delivery_id = :id"],
)
async def test_results_of_a_locked_attempt_wait_without_delaying_others(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, statement: str
) -> None:
    locked, repeated, other = [await add_delivery(engine) for _ in range(3)]
    await apply(engine, *(result(each, Outcome.RETRYING) for each in (locked, repeated)))
    async with running_status_writer(rabbit, postgres):
        async with engine.begin() as operator:
            await operator.execute(text(statement), {"id": locked})
            await hand.report(result(locked), result(repeated), result(other))
            await has_status(engine, repeated, DeliveryStatus.SENT)
            await has_status(engine, other, DeliveryStatus.SENT)
            assert (await delivery_row(engine, locked))[0] == DeliveryStatus.RETRYING
        await has_status(engine, locked, DeliveryStatus.SENT)
    assert await attempt_rows(engine, locked) == [(1, "sent", None)]
    assert await hand.depth("notifications.results.telegram") == 0


async def test_repeated_result_does_not_wait_for_a_locked_attempt_that_it_does_not_change(engine: AsyncEngine) -> None:
    repeated, other = await add_delivery(engine), await add_delivery(engine)
    await apply(engine, result(repeated))
    async with engine.begin() as operator, asyncio.timeout(10):
        await operator.execute(text("SELECT FROM attempts FOR UPDATE"))
        await apply(engine, result(repeated, Outcome.RETRYING), result(other))
    assert (await delivery_row(engine, other))[0] == DeliveryStatus.SENT
    assert await attempt_rows(engine, repeated) == [(1, "sent", None)]
