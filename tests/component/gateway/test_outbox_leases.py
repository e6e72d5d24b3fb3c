"""Leases on outbox rows: a relay whose lease has ended publishes nothing, and changes no row of another relay."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from notify_common.contracts.channels import KNOWN_CHANNELS, Channel
from notify_common.errors import PublishFailed
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_database.engine import PostgresSettings
from notify_database.errors import DatabaseUnavailable
from notify_gateway.outbox import lease
from notify_gateway.outbox.lease import Lease
from notify_gateway.outbox.store import MAX_TAKEN_BYTES, DueDeliveries, Held, OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import hand_on
from support.gateway import rows
from support.outbox import add_row, outbox_is_empty, outbox_rows, published, running_relay
from support.services import TIMEOUT, eventually
from typing_extensions import override

END_LEASES = text("UPDATE outbox SET leased_until = now() - interval '1 second'")
TAKE_BY_ANOTHER = text("UPDATE outbox SET leased_until = now() + interval '31 seconds' RETURNING leased_until")
LEASES = "SELECT delivery_id, leased_until FROM outbox ORDER BY 1"


def renewing(held: Held, next_lease: Lease | None = None) -> Held:
    """Return the held row while a renewal of its lease is in progress."""
    return held._replace(lease=held.lease.with_pending(next_lease or held.lease.next_lease()))


async def test_relay_changes_no_row_that_another_relay_has_leased_since(engine: AsyncEngine) -> None:
    outbox = OutboxStore(engine)
    await add_row(engine)
    held = (await outbox.take_due(10)).held
    async with engine.begin() as connection:
        await connection.execute(END_LEASES)
    [by_another] = (await outbox.take_due(10)).held
    assert await outbox.renew([renewing(each) for each in held]) == set()
    for change in (outbox.release, outbox.postpone, outbox.delete):
        await change(held)
        assert await rows(engine, LEASES) == [(by_another.request.delivery_id, by_another.lease.until)]


async def test_renewed_lease_replaces_the_earlier_one(engine: AsyncEngine) -> None:
    outbox = OutboxStore(engine)
    row = await add_row(engine)
    [held] = (await outbox.take_due(10)).held
    renewed = held.lease.next_lease()
    assert renewed.until > held.lease.until
    assert renewed.ends > held.lease.ends
    assert await outbox.renew([renewing(held, renewed)]) == {row}
    assert await rows(engine, LEASES) == [(row, renewed.until)]
    await outbox.delete([held])
    assert await outbox_rows(engine) == 1
    await outbox.delete([held._replace(lease=renewed)])
    assert await outbox_rows(engine) == 0


@pytest.mark.parametrize("committed", [True, False])
async def test_row_is_still_held_if_the_response_to_its_renewal_is_lost(
    engine: AsyncEngine, *, committed: bool
) -> None:
    outbox = OutboxStore(engine)
    row = await add_row(engine)
    [held] = (await outbox.take_due(10)).held
    unknown = renewing(held)
    if committed:
        await outbox.renew([unknown])
    # The renewal is repeated, with the same result in both cases.
    assert unknown.lease.next_lease().until == unknown.lease.pending_until
    assert await outbox.renew([unknown]) == {row}
    await outbox.delete([unknown])
    assert await outbox_rows(engine) == 0


async def test_refused_row_backs_off_and_keeps_its_age(engine: AsyncEngine) -> None:
    outbox = OutboxStore(engine)
    await add_row(engine, due=timedelta(minutes=-10))
    [before] = await rows(engine, "SELECT due_at FROM outbox")
    [held] = (await outbox.take_due(10)).held
    await outbox.postpone([held])
    [refused] = await rows(engine, "SELECT leased_until, due_since, due_at - now() AS wait FROM outbox")
    assert (refused.leased_until, refused.due_since) == (None, before.due_at)
    assert timedelta(0) < refused.wait <= timedelta(seconds=1)
    assert (await outbox.take_due(10)).held == []
    backlog = await outbox.backlog()
    assert backlog.rows == 1
    assert backlog.oldest > 590
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE outbox SET due_at = now()"))
    await outbox.postpone((await outbox.take_due(10)).held)
    [again] = await rows(engine, "SELECT due_since, due_at - now() AS wait FROM outbox")
    assert again.due_since == before.due_at
    assert timedelta(seconds=1) < again.wait <= timedelta(seconds=30)


async def test_poll_takes_a_bounded_number_of_bytes_and_at_least_one_row(engine: AsyncEngine) -> None:
    for _ in range(5):
        await add_row(engine, channel="email", html="x" * 60_000)
        await add_row(engine, channel="telegram", html="x" * 60_000)  # no channel but e-mail sends the HTML
    outbox = OutboxStore(engine)
    taken = [await outbox.take_due(10, max_bytes=limit) for limit in (100_000, 1)]
    counts = [
        [sum(held.request.channel is channel for held in due.held) for channel in (Channel.EMAIL, Channel.TELEGRAM)]
        for due in taken
    ]
    assert counts == [[2, 5], [1, 0]]
    assert [due.more for due in taken] == [{Channel.EMAIL}, {Channel.EMAIL}]


async def test_rows_that_are_only_deleted_count_towards_the_limit(engine: AsyncEngine) -> None:
    # A relay that dies between the confirm and the delete leaves such rows behind.
    for _ in range(5):
        await add_row(engine, due=timedelta(minutes=-1))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET status = 'sent'"))
    pending = await add_row(engine)
    outbox = OutboxStore(engine)
    first, second = await outbox.take_due(5), await outbox.take_due(5)
    assert (first.held, first.ended, first.more) == ([], [], {Channel.TELEGRAM})
    assert [held.request.delivery_id for held in second.held] == [pending]
    assert await outbox_rows(engine) == 1


class Paused(ConfirmedPublisher):
    """A publisher whose first call is delayed, as if the process were stopped for a while."""

    began: asyncio.Event
    resume: asyncio.Event
    may_write: list[Callable[[], bool]]

    @override
    async def publish(
        self, messages: Sequence[OutgoingMessage], *, may_write: Callable[[], bool] = lambda: True, **options: Any
    ) -> list[PublishFailed | None]:
        if not self.began.is_set():
            self.may_write.append(may_write)
            self.began.set()
            await self.resume.wait()
        return await super().publish(messages, may_write=may_write, **options)


async def test_relay_paused_beyond_its_lease_publishes_nothing(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The relay may publish a row only in the first half second after it takes the row.
    monkeypatch.setattr(lease, "LEASE_SECONDS", lease.LEASE_RESERVE + 0.5)
    began, resume = asyncio.Event(), asyncio.Event()
    may_write: list[Callable[[], bool]] = []
    paused = type("PausedOnce", (Paused,), {"began": began, "resume": resume, "may_write": may_write})
    late = await add_row(engine)
    async with running_relay(rabbit, postgres, paused), hand_on(rabbit) as hand:
        await began.wait()
        async with engine.begin() as connection:
            await connection.execute(END_LEASES)
        [taken] = (await OutboxStore(engine).take_due(10)).held

        async def is_too_late() -> bool:
            return not may_write[0]()

        await eventually(is_too_late, "the lease has nearly ended")
        resume.set()
        marker = await add_row(engine)
        assert await published(hand, Channel.TELEGRAM, 1) == [marker]
        assert await hand.depth("notifications.telegram") == 0
    assert await rows(engine, LEASES) == [(late, taken.lease.until)]


class UnansweredRenewals(OutboxStore):
    """An outbox whose renewals are committed, but whose responses are lost."""

    renewed: asyncio.Event

    @override
    async def renew(self, held: Sequence[Held]) -> set[UUID]:
        await super().renew(held)
        self.renewed.set()
        raise DatabaseUnavailable("the connection was lost")


async def test_confirmed_row_is_deleted_although_the_response_to_its_renewal_was_lost(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_gateway.outbox.lane.RENEW_INTERVAL", 0.05)
    began, resume, renewed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    paused = type("PausedOnce", (Paused,), {"began": began, "resume": resume, "may_write": []})
    unanswered = type("UnansweredOnce", (UnansweredRenewals,), {"renewed": renewed})
    row = await add_row(engine)
    async with running_relay(rabbit, postgres, paused, unanswered), hand_on(rabbit) as hand:
        await renewed.wait()
        resume.set()
        assert await published(hand, Channel.TELEGRAM, 1) == [row]
        await outbox_is_empty(engine)


class Undeletable(OutboxStore):
    """An outbox that counts its polls, and from which nothing can be deleted until `deletable` is set."""

    deletable: asyncio.Event
    polls: asyncio.Queue[None]

    @override
    async def delete(self, held: Sequence[Held]) -> None:
        if not self.deletable.is_set():
            raise DatabaseUnavailable("the connection was lost")
        await super().delete(held)

    @override
    async def take_due(
        self, limit: int, channels: Sequence[str] = KNOWN_CHANNELS, *, max_bytes: int = MAX_TAKEN_BYTES
    ) -> DueDeliveries:
        self.polls.put_nowait(None)
        return await super().take_due(limit, channels, max_bytes=max_bytes)


async def test_relay_does_not_repeat_confirmed_deliveries_whose_rows_it_has_yet_to_delete(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_gateway.outbox.store.LEASE", timedelta(seconds=1))  # as if the outage were longer
    deletable, polls = asyncio.Event(), asyncio.Queue[None]()
    undeletable = type("UndeletableOnce", (Undeletable,), {"deletable": deletable, "polls": polls})
    row = await add_row(engine)
    async with running_relay(rabbit, postgres, outbox_class=undeletable), hand_on(rabbit) as hand:
        assert await published(hand, Channel.TELEGRAM, 1) == [row]

        async def lease_has_ended() -> bool:
            return bool(await rows(engine, "SELECT 1 FROM outbox WHERE leased_until < now()"))

        await eventually(lease_has_ended, "the lease has ended")
        while not polls.empty():
            polls.get_nowait()
        for _ in range(2):
            await polls.get()
        deletable.set()
        await outbox_is_empty(engine)
        marker = await add_row(engine)
        assert await published(hand, Channel.TELEGRAM, 1) == [marker]


class CountedRenewals(OutboxStore):
    """An outbox that puts the number of renewed rows into a queue after each renewal."""

    renewals: asyncio.Queue[int]

    @override
    async def renew(self, held: Sequence[Held]) -> set[UUID]:
        renewed = await super().renew(held)
        self.renewals.put_nowait(len(renewed))
        return renewed


async def test_lost_lease_is_not_renewed_and_does_not_end_the_relay(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_gateway.outbox.lane.RENEW_INTERVAL", 0.05)
    began, resume = asyncio.Event(), asyncio.Event()
    renewals: asyncio.Queue[int] = asyncio.Queue()
    paused = type("PausedOnce", (Paused,), {"began": began, "resume": resume, "may_write": []})
    counted = type("Counted", (CountedRenewals,), {"renewals": renewals})
    lost = await add_row(engine)
    async with running_relay(rabbit, postgres, paused, counted), hand_on(rabbit) as hand:
        await began.wait()
        async with engine.begin() as connection:
            by_another = (await connection.execute(TAKE_BY_ANOTHER)).scalar_one()
        async with asyncio.timeout(TIMEOUT):
            while await renewals.get():
                pass  # renewed before the lease ended
            assert [await renewals.get() for _ in range(2)] == [0, 0]
        resume.set()
        marker = await add_row(engine)
        assert await published(hand, Channel.TELEGRAM, 1) == [marker]
        assert await hand.depth("notifications.telegram") == 0
    assert await rows(engine, LEASES) == [(lost, by_another)]
