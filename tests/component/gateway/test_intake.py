"""Batches of requests that share a transaction, and the limit on waiting requests."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar

import httpx
import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import create_broker
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, create_engine
from notify_database.errors import DatabaseUnavailable, DataRejected
from notify_gateway.errors import RequestRejected
from notify_gateway.http.principal import Scope
from notify_gateway.legacy.schemas import LegacyNotificationRequest
from notify_gateway.notifications import intake
from notify_gateway.notifications.idempotency import Claim
from notify_gateway.notifications.intake import NotificationIntake, Receipt
from notify_gateway.notifications.new_notification import new_notification
from notify_gateway.outbox.lease import Lease, lease_clock
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import blocked_or_done
from support.failing_rows import fail_on
from support.gateway import BODY, Json, bearer, post
from support.plans import recorded
from support.services import NOWHERE, gateway_metrics, running_gateway
from typing_extensions import override

GOOD = LegacyNotificationRequest(user_id=1, message="fine", type=Channel.EMAIL)
EXPIRED = GOOD.model_copy(update={"expires_at": utc_now() - timedelta(minutes=1)})
TRANSACTIONS = text("SELECT pg_current_xact_id()::text::bigint")


async def stored(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        counted: int = (await connection.execute(text("SELECT count(*) FROM notifications"))).scalar_one()
    return counted


async def test_500_concurrent_requests_share_transactions(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        before = (await connection.execute(TRANSACTIONS)).scalar_one()
    await asyncio.gather(*(post(api, user_id=number) for number in range(1, 501)))
    async with engine.connect() as connection:
        transactions = (
            await connection.execute(text("SELECT pg_current_xact_id()::text::bigint"))
        ).scalar_one() - before
        counts = await connection.execute(text("SELECT count(*), (SELECT count(*) FROM outbox) FROM notifications"))
    assert counts.one() == (500, 500)
    assert transactions < 100


class RecordingRelay(OutboxRelay):
    """A relay that does not run, but has room, and keeps the leases of what is handed over to it."""

    leases: ClassVar[list[Lease]] = []

    @override
    def channels_with_room(self, requests: Sequence[DeliveryRequested]) -> set[Channel]:
        return set(Channel)

    @override
    def hand_over(self, requests: Sequence[DeliveryRequested], lease: Lease) -> None:
        self.leases.append(lease)
        super().hand_over(requests, lease)


@asynccontextmanager
async def accepting(
    postgres: PostgresSettings, relay_class: type[OutboxRelay] = OutboxRelay
) -> AsyncIterator[tuple[NotificationIntake, AsyncEngine]]:
    """Yield an intake, and its engine with a single connection."""
    engine, broker = create_engine(postgres, pool_size=1), create_broker(NOWHERE, "gateway")
    relay = relay_class(
        broker, ConfirmedPublisher, OutboxStore(engine), EventPublisher(NOWHERE, "gateway"), gateway_metrics()
    )
    yield NotificationIntake(engine, relay, max_waiting=1000, metrics=gateway_metrics()), engine
    await engine.dispose()


async def test_row_rejected_by_the_database_does_not_fail_its_batch(postgres: PostgresSettings) -> None:
    bad = LegacyNotificationRequest.model_construct(user_id=1, message="a\x00b", type=Channel.EMAIL, metadata=None)
    async with accepting(postgres) as (intake_, engine):
        requests = [intake_.accept(new_notification(request, "default")) for request in (GOOD, bad, GOOD)]
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert [isinstance(outcome, DataRejected) for outcome in outcomes] == [False, True, False]
        assert await stored(engine) == 2


@pytest.mark.parametrize("claims", [False, True])
async def test_notification_with_which_a_statement_fails_does_not_fail_its_batch(
    postgres: PostgresSettings, *, claims: bool
) -> None:
    bad = GOOD.model_copy(update={"message": "bad"})
    async with accepting(postgres) as (intake_, engine):
        await fail_on(engine, "INSERT", "notifications", "NEW.message = 'bad'")
        requests = [
            intake_.accept(new_notification(request, "default"), Claim(("default", str(key)), b"") if claims else None)
            for key, request in enumerate((GOOD, bad, GOOD))
        ]
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert [isinstance(outcome, DatabaseUnavailable) for outcome in outcomes] == [False, True, False]
        assert await stored(engine) == 2


async def test_settings_of_users_are_looked_up_only_if_there_are_any(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    opt_out = text("""
        INSERT INTO user_channels (tenant, user_id, channel, opted_out, updated_at)
        VALUES ('default', 2, 'email', true, now())
    """)
    async with engine.begin() as connection:
        await connection.execute(opt_out)
    async with accepting(postgres) as (intake_, accepting_engine):

        async def statements(*users: int) -> int:
            """Return how many statements accept a batch with a notification to each user."""
            requests = [GOOD.model_copy(update={"user_id": user}) for user in users]
            with recorded(accepting_engine) as executed:
                await asyncio.gather(*(intake_.accept(new_notification(each, "default")) for each in requests))
            return len(executed)

        assert await statements(1, 1) == 1
        assert await statements(1, 2) == 3  # the first one finds settings, and stores nothing
        assert await statements(2) == 2
        assert await statements(1) == 2  # finds none, so that the next one need not look
        assert await statements(1) == 1
    async with engine.connect() as connection:
        notifications = text("SELECT user_id, status FROM deliveries JOIN notifications n ON n.id = notification_id")
        outcomes = sorted(tuple(row) for row in await connection.execute(notifications))
    assert outcomes == [(1, "pending")] * 5 + [(2, "cancelled")] * 2


async def test_lease_ends_no_later_than_in_the_row_after_a_slow_look_up(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with accepting(postgres, RecordingRelay) as (intake_, _):
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE user_channels IN ACCESS EXCLUSIVE MODE"))
            accepted = asyncio.create_task(
                intake_.accept(new_notification(GOOD, "ours"), Claim(("ours", "k"), b"hash"))
            )
            await blocked_or_done(engine, accepted)
            await lock.execute(text("SELECT pg_sleep(1)"))
        await accepted
    left = RecordingRelay.leases[-1].ends - lease_clock()
    async with engine.connect() as connection:
        row = text("SELECT CAST(extract(epoch FROM leased_until - clock_timestamp()) AS float) FROM outbox")
        assert left < (await connection.execute(row)).scalar_one() + 0.5


async def test_rejected_requests_with_keys_do_not_use_up_the_connections(postgres: PostgresSettings) -> None:
    checkouts: list[object] = []
    async with accepting(postgres) as (intake_, engine):
        event.listen(engine.sync_engine, "checkout", lambda connection, *_: checkouts.append(connection))
        requests = [
            intake_.accept(new_notification(EXPIRED, "ours"), Claim(("ours", f"key-{number}"), b"hash"))
            for number in range(500)
        ]
        accepted = intake_.accept(new_notification(GOOD, "theirs"))
        *outcomes, receipt = await asyncio.gather(*requests, accepted, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {RequestRejected}
    assert isinstance(receipt, Receipt)
    assert len(checkouts) < 10


async def test_rejected_request_in_the_batch_of_its_key_gets_the_response_to_the_valid_one(
    postgres: PostgresSettings,
) -> None:
    claim = Claim(("ours", "k"), b"hash")
    async with accepting(postgres) as (intake_, engine):
        requests = [intake_.accept(new_notification(request, "ours"), claim) for request in (EXPIRED, GOOD, EXPIRED)]
        receipts = await asyncio.gather(*requests)
        assert [receipt.replayed for receipt in receipts] == [True, False, True]
        assert len({receipt.response for receipt in receipts}) == 1
        assert await stored(engine) == 1


async def test_too_many_waiting_requests_return_503_with_retry_after(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, max_waiting_requests=3) as api:
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE notifications IN ACCESS EXCLUSIVE MODE"))
            requests = [asyncio.create_task(api.post("/api/notifications", json=BODY)) for _ in range(20)]
            refused, waiting = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            while waiting and len(refused) < 20 - 2 * 3:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
        responses = [request.result() for request in refused]
        assert {(response.status_code, response.headers["retry-after"]) for response in responses} == {(503, "1")}
        accepted = [response.status_code for response in await asyncio.gather(*waiting)]
        assert set(accepted) <= {201, 503}
        assert 201 in accepted


async def test_too_many_waiting_bytes_return_503_and_are_committed_in_small_transactions(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BYTES_PER_TRANSACTION", 20_000)
    monkeypatch.setattr(intake, "MAX_WAITING_BYTES", 50_000)
    body = {**BODY, "message": "x" * 9_900}  # two fit into a transaction, five may wait
    async with running_gateway(NOWHERE, postgres, relaying=False) as api:
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE notifications IN ACCESS EXCLUSIVE MODE"))
            requests = [asyncio.create_task(api.post("/api/notifications", json=body)) for _ in range(20)]
            refused, waiting = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            while len(refused) < 20 - 2 - 5:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
        responses = [request.result() for request in refused]
        assert {(response.status_code, response.headers["retry-after"]) for response in responses} == {(503, "1")}
        assert {response.status_code for response in await asyncio.gather(*waiting)} == {201}
    async with engine.connect() as connection:
        sizes = await connection.execute(text("SELECT count(*) FROM notifications GROUP BY xmin::text"))
    assert set(sizes.scalars()) <= {1, 2}


async def first_done(
    requests: Collection[asyncio.Task[httpx.Response]], count: int
) -> tuple[set[asyncio.Task[httpx.Response]], set[asyncio.Task[httpx.Response]]]:
    """Wait until `count` of the requests have a response; return those that have one, and the others."""
    done, waiting = set[asyncio.Task[httpx.Response]](), set(requests)
    while len(done) < count:
        more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    return done, waiting


@pytest.mark.parametrize(
    ("body", "settings"),
    [({"message": "x" * 9_900}, {}), ({}, {"max_waiting_requests": 20})],
    ids=["large requests", "many requests"],
)
async def test_tenant_that_fills_the_queue_neither_keeps_others_out_nor_delays_them(
    body: Json, settings: Json, postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "NOTIFICATIONS_PER_TRANSACTION", 2)
    monkeypatch.setattr(intake, "MAX_WAITING_BYTES", 200_000)
    many, few = [await bearer(engine, Scope.SEND, tenant=tenant) for tenant in ("many", "few")]
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on", rate_limit=0, **settings) as api:

        def send(headers: dict[str, str], **change: object) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(api.post("/api/notifications", json={**BODY, **change}, headers=headers))

        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE notifications IN ACCESS EXCLUSIVE MODE"))
            in_flight = send(many, **body)
            await blocked_or_done(engine, in_flight)
            _, waiting = await first_done([send(many, **body) for _ in range(60)], 60 - 20)
            late = [send(few, **body) for _ in range(4)]
            # Each of them takes the place of another.
            refused, waiting = await first_done([*waiting, *late], len(late))
            assert refused.isdisjoint(late)
            assert {request.result().status_code for request in refused} == {503}
        assert {request.status_code for request in await asyncio.gather(in_flight, *waiting)} == {201}
    async with engine.connect() as connection:
        commits = await connection.execute(text("SELECT tenant FROM notifications ORDER BY xmin::text::bigint, tenant"))
    order = commits.scalars().all()
    assert order.count("many") >= 15
    assert order[:14].count("few") == 4, order
