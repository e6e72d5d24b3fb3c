"""The caller's outbox on real databases, with a real gateway or one that fails."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from notify_client import AsyncClient, Client, outbox
from notify_client.outbox.database import transaction
from notify_client.outbox.decisions import WINDOW
from notify_client.outbox.relay import relay
from notify_client.outbox.store import take
from notify_client.outbox.table import database_time, table
from notify_database.engine import PostgresSettings
from sqlalchemy import Engine, create_engine, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from support.client import FORWARD, FORWARD_AND_LOSE, HANG, LOSE, FailingServer, Reply
from support.services import NOWHERE, eventually, served_gateway

CREATED = Reply(
    201,
    b'{"id": "01a21794-3cc1-7d57-8220-d2098ea77790", "status": "pending", "created_at": "2026-11-26T11:18:40Z",'
    b' "deliveries": []}',
)
BUSY = Reply(503, b"", {"Retry-After": "0"})
REFUSED = Reply(
    422,
    b'{"title": "", "status": 422, "detail": "to.email: is required", "code": "invalid_request",'
    b' "errors": [{"location": "body", "field": "to.email", "detail": "is required"}]}',
)
KINDS = ("psycopg", "asyncpg", "sqlite", "aiosqlite")

AnyEngine = Engine | AsyncEngine


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    monkeypatch.setattr("notify_client.outbox.decisions.FIRST_BACKOFF", timedelta(milliseconds=1))


def make_engine(kind: str, postgres: PostgresSettings, folder: Path) -> AnyEngine:
    server = (
        f"{postgres.postgres_user}:{postgres.postgres_password.get_secret_value()}@{postgres.postgres_host}"
        f":{postgres.postgres_port}/{postgres.postgres_database}"
    )
    if kind == "psycopg":
        return create_engine(f"postgresql+psycopg://{server}")
    if kind == "asyncpg":
        return create_async_engine(f"postgresql+asyncpg://{server}")
    if kind == "sqlite":
        return create_engine(f"sqlite:///{folder}/business.db")
    return create_async_engine(f"sqlite+aiosqlite:///{folder}/business.db")


@asynccontextmanager
async def business_database(kind: str, postgres: PostgresSettings, folder: Path) -> AsyncIterator[AnyEngine]:
    engine = make_engine(kind, postgres, folder)
    await transaction(engine, outbox.create_table)
    try:
        yield engine
    finally:
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()


@pytest.fixture(params=KINDS)
async def business(
    request: pytest.FixtureRequest, empty_postgres: PostgresSettings, tmp_path: Path
) -> AsyncIterator[AnyEngine]:
    async with business_database(request.param, empty_postgres, tmp_path) as engine:
        yield engine


@pytest.fixture
async def on_server(empty_postgres: PostgresSettings, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    async with business_database("asyncpg", empty_postgres, tmp_path) as engine:
        assert isinstance(engine, AsyncEngine)
        yield engine


async def enqueue(engine: AnyEngine, message: str = "m", *, commit: bool = True) -> UUID:
    arguments: dict[str, Any] = {"user_id": "1", "channels": ["email"], "message": message, "reference": message}
    if isinstance(engine, AsyncEngine):
        async with AsyncSession(engine) as session:
            key = outbox.enqueue(session, **arguments)
            await (session.commit() if commit else session.rollback())
        return key
    with Session(engine) as sync_session:
        key = outbox.enqueue(sync_session, **arguments)
        if commit:
            sync_session.commit()
    return key


async def rows(engine: AnyEngine) -> dict[UUID, Any]:
    found = await transaction(engine, lambda connection: connection.execute(select(table)).all())
    return {row.id: row for row in found}


async def settled(engine: AnyEngine, condition: Callable[[dict[UUID, Any]], bool]) -> None:
    async def check() -> bool:
        return condition(await rows(engine))

    await eventually(check, "the rows are as expected")


async def sent_all(engine: AnyEngine) -> None:
    await settled(engine, lambda found: not found)


@asynccontextmanager
async def relaying(engine: AnyEngine, url: object, **options: Any) -> AsyncIterator[None]:
    async with AsyncClient(str(url), **options) as client, relay(engine, client, poll_interval=0.01):
        yield


def keys(server: FailingServer) -> list[UUID]:
    return [UUID(each.headers["idempotency-key"]) for each in server.requests]


async def stored(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(text("SELECT reference FROM notifications"))).scalars())


async def age(engine: AnyEngine, by: timedelta) -> None:
    """Move the first attempts of all rows into the past, and end their waits."""

    def change(connection: Any) -> None:
        values = {"first_attempt_at": database_time(connection) - by, "due_at": None}
        connection.execute(update(table).values(**values))

    await transaction(engine, change)


async def test_committed_notification_is_sent_with_its_id_as_key_and_deleted(
    business: AnyEngine, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    key = await enqueue(business, "committed")
    await enqueue(business, "rolled back", commit=False)
    assert list(await rows(business)) == [key]
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(FORWARD, gateway=gateway)
        async with server.serving() as url, relaying(business, url):
            await sent_all(business)
    assert keys(server) == [key]
    assert await stored(engine) == ["committed"]


async def test_lost_response_does_not_create_a_second_notification(
    business: AnyEngine, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    key = await enqueue(business, "once")
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(FORWARD_AND_LOSE, FORWARD_AND_LOSE, FORWARD, gateway=gateway)
        async with server.serving() as url, relaying(business, url):
            await sent_all(business)
    assert keys(server) == [key] * 3
    assert len({each.body for each in server.requests}) == 1
    assert await stored(engine) == ["once"]


async def test_connection_of_the_caller_can_be_used(on_server: AsyncEngine) -> None:
    async with on_server.begin() as connection:
        key = await connection.run_sync(outbox.enqueue, user_id="1", channels=["email"], message="m")
    async with on_server.connect() as connection:
        with pytest.raises(TypeError, match="run_sync"):
            outbox.enqueue(connection, user_id="1", channels=["email"], message="m")  # type: ignore[arg-type]
    assert list(await rows(on_server)) == [key]


async def test_rows_are_sent_oldest_first(business: AnyEngine) -> None:
    expected = [await enqueue(business, str(number)) for number in range(5)]
    server = FailingServer(CREATED)
    async with server.serving() as url, AsyncClient(url) as client, relay(business, client, batch_size=1):
        await sent_all(business)
    assert keys(server) == expected


async def test_refused_row_is_held_with_its_error_and_does_not_block_others(business: AnyEngine) -> None:
    refused, other = await enqueue(business, "private"), await enqueue(business, "other")
    server = FailingServer(REFUSED, CREATED)
    async with server.serving() as url, AsyncClient(url) as client, relay(business, client, batch_size=1):
        await settled(business, lambda found: list(found) == [refused])
    assert keys(server) == [refused, other]
    [held] = await transaction(business, outbox.list_held)
    assert (held.id, held.reference, held.attempts, held.maybe_sent) == (refused, "private", 1, False)
    assert held.error == "InvalidRequest: to.email: is required (422 invalid_request)"


async def test_released_row_is_sent_again_and_dropped_row_never(business: AnyEngine) -> None:
    released, dropped = await enqueue(business), await enqueue(business)
    server = FailingServer(REFUSED, REFUSED, CREATED)
    async with server.serving() as url, relaying(business, url):
        await settled(business, lambda found: all(row.held_at is not None for row in found.values()))
        assert await transaction(business, outbox.drop, [dropped]) == 1
        assert await transaction(business, outbox.release, [released, dropped]) == 1
        await sent_all(business)
    assert keys(server)[2:] == [released]
    assert await transaction(business, outbox.release, [released]) == 0


async def test_row_that_always_fails_does_not_block_others(on_server: AsyncEngine) -> None:
    failing = await enqueue(on_server, "failing")
    server = FailingServer(Reply(500), CREATED, Reply(500), CREATED)
    async with server.serving() as url, AsyncClient(url) as client, relay(on_server, client, batch_size=1):
        await settled(on_server, lambda found: failing not in found)
    assert keys(server) == [failing] * 2


async def test_row_is_held_once_its_first_attempt_is_too_long_ago(business: AnyEngine) -> None:
    attempted = await enqueue(business, "attempted")
    server = FailingServer(LOSE, BUSY)
    async with server.serving() as url, relaying(business, url):
        await settled(business, lambda found: found[attempted].attempts > 1)
    before = len(server.requests)
    await age(business, WINDOW)
    never_attempted = await enqueue(business, "old, but never attempted")
    async with server.serving() as url, relaying(business, url):
        await settled(business, lambda found: found[attempted].held_at is not None)
        await settled(business, lambda found: found[never_attempted].attempts > 0)
    assert attempted not in keys(server)[before:]
    [held] = await transaction(business, outbox.list_held)
    assert held.maybe_sent
    assert "more than 23 hours ago" in held.error


async def test_row_that_the_gateway_certainly_did_not_accept_never_gets_too_old(business: AnyEngine) -> None:
    key = await enqueue(business)
    async with relaying(business, "http://127.0.0.1:1"):
        await settled(business, lambda found: found[key].error is not None)
    row = (await rows(business))[key]
    assert (row.first_attempt_at, row.attempts, row.due_at) == (None, 0, None)
    async with FailingServer(Reply(429, b"", {"Retry-After": "0"})).serving() as url, relaying(business, url):
        await settled(business, lambda found: found[key].attempts > 1)
    assert (await rows(business))[key].first_attempt_at is None


async def test_releasing_keeps_the_limit_of_a_recent_attempt_and_lifts_an_old_one(business: AnyEngine) -> None:
    key = await enqueue(business)

    def hold(connection: Any) -> None:
        connection.execute(update(table).values(held_at=database_time(connection)))

    for by, kept in [(WINDOW - timedelta(minutes=1), True), (WINDOW, False)]:
        await age(business, by)
        await transaction(business, hold)
        assert await transaction(business, outbox.release, [key]) == 1
        assert ((await rows(business))[key].first_attempt_at is not None) == kept


async def test_relays_at_once_send_each_row_once(business: AnyEngine) -> None:
    expected = [await enqueue(business, str(number)) for number in range(60)]
    server = FailingServer(CREATED)
    async with server.serving() as url, relaying(business, url), relaying(business, url), relaying(business, url):
        await sent_all(business)
    assert sorted(keys(server)) == sorted(expected)


async def test_relay_does_not_wait_for_one_that_is_just_taking_rows(on_server: AsyncEngine) -> None:
    expected = [await enqueue(on_server, str(number)) for number in range(2)]
    async with on_server.begin() as connection:
        first = await connection.run_sync(take, 1)
        second = await transaction(on_server, take, 1)
    assert [row.id for row in [*first.rows, *second.rows]] == expected


async def test_dead_relays_rows_are_taken_when_its_lease_ends(business: AnyEngine) -> None:
    key = await enqueue(business)
    taken = await transaction(business, take, 10)
    assert [row.id for row in taken.rows] == [key]
    assert not (await transaction(business, take, 10)).rows

    def end_leases(connection: Any) -> None:
        connection.execute(update(table).values(due_at=database_time(connection) - timedelta(seconds=1)))

    await transaction(business, end_leases)
    server = FailingServer(CREATED)
    async with server.serving() as url, relaying(business, url):
        await sent_all(business)
    assert keys(server) == [key]


async def test_no_transaction_is_open_while_the_gateway_is_slow(on_server: AsyncEngine) -> None:
    await enqueue(on_server)
    server = FailingServer(HANG)
    open_transactions = text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
                             " AND datname = current_database()")  # fmt: skip
    async with server.serving() as url, relaying(on_server, url, timeout=1.0):

        async def was_called() -> bool:
            return bool(server.requests)

        await eventually(was_called, "the request has arrived")
        async with on_server.connect() as connection:
            assert (await connection.execute(open_transactions)).scalar() == 0
            assert (await connection.execute(select(func.count()).where(table.c.lease.is_not(None)))).scalar() == 1


async def test_relay_survives_a_database_that_is_away(on_server: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "notify_client")
    server = FailingServer(CREATED)
    async with server.serving() as url, relaying(on_server, url):
        async with on_server.begin() as connection:
            await connection.execute(text("ALTER TABLE notify_outbox RENAME TO away"))

        async def is_reported() -> bool:
            return "the database of the outbox fails" in caplog.text

        await eventually(is_reported, "the failure is logged")
        async with on_server.begin() as connection:
            await connection.execute(text("ALTER TABLE away RENAME TO notify_outbox"))
        await enqueue(on_server, "private")
        await sent_all(on_server)
    assert "the database of the outbox works again" in caplog.text
    assert "private" not in caplog.text


@pytest.fixture
def sync_business(empty_postgres: PostgresSettings, tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine("psycopg", empty_postgres, tmp_path)
    assert isinstance(engine, Engine)
    outbox.create_table(engine)
    yield engine
    engine.dispose()


async def test_relay_runs_in_a_thread(sync_business: Engine) -> None:
    key = await enqueue(sync_business)
    server = FailingServer(CREATED)

    def main(url: str) -> None:
        with Client(url) as client, outbox.relay(sync_business, client, poll_interval=0.01):
            while True:
                with sync_business.connect() as connection:
                    if not connection.execute(select(func.count()).select_from(table)).scalar():
                        return

    async with server.serving() as url:
        await asyncio.to_thread(main, url)
    assert keys(server) == [key]
    assert json.loads(server.requests[0].body)["message"] == "m"


def test_relay_in_a_thread_needs_a_synchronous_engine_and_client() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with Client("http://gateway") as client, pytest.raises(TypeError, match="async with"), outbox.relay(engine, client):
        pass
