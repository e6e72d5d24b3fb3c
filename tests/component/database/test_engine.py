"""PostgreSQL sessions."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from notify_database.engine import PostgresSettings, create_engine, database_errors, execute
from notify_database.errors import DatabaseUnavailable, DataRejected, StatementFailed
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.fakes import CuttableNetwork
from support.services import TIMEOUT, eventually

BACKEND = text("SELECT pg_backend_pid()")


@pytest.fixture
async def network(postgres: PostgresSettings) -> AsyncIterator[CuttableNetwork]:
    async with CuttableNetwork.before(postgres.postgres_host, postgres.postgres_port) as network:
        yield network


async def test_sessions_have_idle_transaction_and_statement_timeouts(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        for setting, value in (("idle_in_transaction_session_timeout", "10s"), ("statement_timeout", "30s")):
            assert (await connection.execute(text(f"SHOW {setting}"))).scalar_one() == value


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("P0001", StatementFailed),
        ("XX001", StatementFailed),
        ("58030", StatementFailed),
        ("23514", StatementFailed),
        ("22023", DataRejected),
        ("42501", DatabaseUnavailable),
        ("53200", DatabaseUnavailable),
        ("40P01", DatabaseUnavailable),
    ],
)
async def test_error_that_one_row_may_cause_is_told_from_an_outage(
    engine: AsyncEngine, code: str, expected: type[Exception]
) -> None:
    failing = text(f"DO $$ BEGIN RAISE EXCEPTION 'of this test' USING ERRCODE = '{code}'; END $$")
    with pytest.raises((DatabaseUnavailable, DataRejected)) as raised:
        await execute(engine, failing)
    assert raised.type is expected


async def test_commits_are_durable_whatever_the_database_says(postgres: PostgresSettings) -> None:
    engine = create_engine(postgres, pool_size=1)
    await execute(engine, text(f'ALTER DATABASE "{postgres.postgres_database}" SET synchronous_commit = off'))
    await engine.dispose()
    assert (await execute(engine, text("SHOW synchronous_commit"))).scalar_one() == "on"
    await engine.dispose()


async def test_vanished_database_is_unavailable_and_its_connection_is_not_used_again(
    postgres: PostgresSettings, network: CuttableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_database.engine.ANSWER_TIME", 0.1)
    behind = postgres.model_copy(update={"postgres_host": "127.0.0.1", "postgres_port": network.port})
    engine = create_engine(behind, pool_size=1, statement_timeout=0.4)
    before = (await execute(engine, BACKEND)).scalar_one()
    network.freeze()
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(DatabaseUnavailable):
            await execute(engine, BACKEND)
    await network.thaw()
    assert (await execute(engine, BACKEND)).scalar_one() != before

    async def lose_the_database_in_a_transaction() -> None:
        with database_errors():
            async with engine.begin() as connection:
                await connection.execute(BACKEND)
                network.freeze()
                await connection.execute(BACKEND)

    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(DatabaseUnavailable):
            await lose_the_database_in_a_transaction()
    await network.thaw()
    await execute(engine, BACKEND)
    await engine.dispose()


async def test_statement_of_a_cancelled_task_ends(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    """Its connection is closed, because a request to cancel it might cancel a commit instead."""
    other = create_engine(postgres, pool_size=1)
    sleeping = asyncio.create_task(execute(engine, text("SELECT pg_sleep(3600)")))
    count = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")

    async def runs() -> bool:
        return bool((await execute(other, count)).scalar_one())

    async def has_ended() -> bool:
        return not await runs()

    await eventually(runs, "the statement runs")
    sleeping.cancel()
    await asyncio.wait({sleeping})
    await eventually(has_ended, "the server ends the statement")
    await other.dispose()


async def test_engine_without_a_statement_timeout_waits_for_long_statements(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_database.engine.ANSWER_TIME", 0.01)
    engine = create_engine(postgres, pool_size=1, statement_timeout=0)
    await execute(engine, text("SELECT pg_sleep(0.1)"))
    await engine.dispose()
