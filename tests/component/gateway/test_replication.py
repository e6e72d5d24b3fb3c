"""A synchronous standby: nothing that a failover would lose is visible, replayed or answered with a 201."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, autocommitting, create_engine, database_errors, execute
from notify_database.errors import DatabaseUnavailable
from notify_database.migrate import prepare_database
from notify_gateway.errors import RequestRejected
from notify_gateway.legacy.schemas import LegacyNotificationRequest
from notify_gateway.notifications.idempotency import claim_of
from notify_gateway.notifications.intake import Receipt
from notify_gateway.notifications.new_notification import new_notification
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.postgres_nodes import CANCEL, Server, hosts_settings, running_pair, wait_for_standby, waiting_commits
from support.processes import gateway_command
from support.roles import migration_settings
from support.services import NOWHERE, TIMEOUT, eventually, running_gateway, working_gateway

BODY = {"user_id": 1, "message": "hello", "type": "telegram"}
INSERT = text("INSERT INTO replicated DEFAULT VALUES")
COUNT = text("SELECT count(*) FROM replicated")
# The row lock of a session that waits for another session's transaction to end.
LOCK_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    with running_pair(tmp_path_factory.mktemp("pair")) as pair:
        asyncio.run(_prepare(pair[0]))
        yield pair


async def _prepare(primary: Server) -> None:
    await prepare_database(migration_settings(primary.settings))
    engine = primary.engine()
    await execute(engine, text("CREATE TABLE replicated ()"))
    await wait_for_standby(engine)
    await engine.dispose()


@pytest.fixture
async def primary(pair: tuple[Server, Server]) -> AsyncIterator[AsyncEngine]:
    """Yield an administrator's engine. It has no transactions of its own that would wait."""
    engine = pair[0].engine()
    await execute(engine, text("TRUNCATE replicated, notifications, deliveries, outbox, idempotency_keys"))
    yield engine
    await engine.dispose()


@pytest.fixture
def settings(pair: tuple[Server, Server]) -> PostgresSettings:
    primary, standby = pair
    return hosts_settings(standby.address, primary.address)


async def count(engine: AsyncEngine, query: str = "SELECT count(*) FROM notifications") -> int:
    counted: int = (await execute(engine, text(query))).scalar_one()
    return counted


async def insert(engine: AsyncEngine) -> None:
    with database_errors():
        async with engine.begin() as connection:
            await connection.execute(INSERT)


async def test_commands_find_the_primary_behind_its_standby(settings: PostgresSettings) -> None:
    await gateway_command("keys", "create", "--tenant", "a", "--scope", "send", servers=[settings])


@pytest.mark.parametrize("in_one_statement", [True, False], ids=["statement", "transaction"])
@pytest.mark.parametrize("end", ["timeout", "cancelled", "disposed"])
async def test_commit_that_is_given_up_stays_invisible_until_it_is_replicated(
    pair: tuple[Server, Server],
    primary: AsyncEngine,
    settings: PostgresSettings,
    monkeypatch: pytest.MonkeyPatch,
    in_one_statement: bool,
    end: str,
) -> None:
    monkeypatch.setattr("notify_database.engine.ANSWER_TIME", 0.1)
    engine = create_engine(settings, pool_size=1, statement_timeout=0.5 if end == "timeout" else 30)
    await execute(engine, COUNT)  # connects
    with pair[1].paused():
        inserting = asyncio.create_task(insert(autocommitting(engine) if in_one_statement else engine))
        [session] = await waiting_commits(primary, 1)
        if end == "cancelled":
            inserting.cancel()
        elif end == "disposed":
            inserting.cancel()
            await asyncio.wait({inserting})
            await engine.dispose()
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(DatabaseUnavailable if end == "timeout" else asyncio.CancelledError):
                await inserting
        # A request to cancel would arrive over another connection, and before this one is answered.
        await execute(primary, text("SELECT pg_sleep(1)"))
        assert await waiting_commits(primary, 1) == [session]
        assert await count(primary, "SELECT count(*) FROM replicated") == 0
    await waiting_commits(primary, 0)
    assert await count(primary, "SELECT count(*) FROM replicated") == 1
    await engine.dispose()


async def test_request_gets_its_response_only_after_the_replication(
    pair: tuple[Server, Server], primary: AsyncEngine, settings: PostgresSettings
) -> None:
    async with running_gateway(NOWHERE, settings, relaying=False) as api:
        await api.get("/readyz")
        with pair[1].paused():
            posting = asyncio.create_task(api.post("/api/notifications", json=BODY))
            await waiting_commits(primary, 1)
            assert not posting.done()
            assert await count(primary) == 0
        assert (await posting).status_code == 201


async def test_replay_waits_for_the_replication_of_the_first_request(
    pair: tuple[Server, Server], primary: AsyncEngine, settings: PostgresSettings
) -> None:
    headers = {"Idempotency-Key": "k"}

    async def post(api: httpx.AsyncClient) -> httpx.Response:
        return await api.post("/api/notifications", json=BODY, headers=headers)

    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(running_gateway(NOWHERE, settings, relaying=False)) for _ in range(2)
        ]
        with pair[1].paused():
            posting = asyncio.create_task(post(first))
            await waiting_commits(primary, 1)
            repeating = asyncio.create_task(post(second))

            async def repeated_request_waits() -> bool:
                return await count(primary, LOCK_WAITS) == 1

            await eventually(repeated_request_waits, "the repeated request waits for the first one")
            assert not posting.done()
            assert not repeating.done()
        accepted, replayed = await posting, await repeating
    assert (accepted.status_code, replayed.status_code) == (201, 201)
    assert replayed.headers["Idempotent-Replayed"] == "true"
    assert replayed.content == accepted.content


@pytest.mark.parametrize("expired", [False, True])
async def test_replay_waits_even_if_the_first_request_is_visible_but_not_replicated(
    pair: tuple[Server, Server], primary: AsyncEngine, settings: PostgresSettings, expired: bool
) -> None:
    """A commit is visible without being replicated after a crash of the primary, or if an administrator cancels it."""
    expires_at = utc_now() + timedelta(hours=1)
    request = LegacyNotificationRequest.model_validate({**BODY, "expires_at": expires_at})
    claim = claim_of(request, "default", "k", test=False)
    async with working_gateway(NOWHERE, settings, relaying=False) as gateway:
        later = replace(new_notification(request, "default"), created_at=expires_at)
        with pytest.raises(RequestRejected):
            await gateway.intake.accept(later, claim)  # connects
        with pair[1].paused():
            accepting = asyncio.create_task(gateway.intake.accept(new_notification(request, "default"), claim))
            [session] = await waiting_commits(primary, 1)
            async with primary.connect() as administrator:
                await administrator.execute(CANCEL, {"pid": session})
            accepted = await accepting
            assert await count(primary) == 1
            repeated = later if expired else new_notification(request, "default")
            replaying = asyncio.create_task(gateway.intake.accept(repeated, claim))
            done, _ = await asyncio.wait(
                {replaying, asyncio.create_task(waiting_commits(primary, 1))}, return_when=asyncio.FIRST_COMPLETED
            )
            assert replaying not in done
        assert await replaying == Receipt(accepted.response, replayed=True)
