"""Clients that know a primary and its standbys: they find the primary, also after a failover."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress

import asyncpg
import pytest
from notify_database.engine import PostgresSettings, create_engine, database_errors, database_problem, execute
from notify_database.errors import DatabaseUnavailable, LoginRejected
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.postgres_nodes import Server, hosts_settings, running_pair
from support.rabbitmq_nodes import silent_address
from support.services import TIMEOUT, eventually

NOTHING_LISTENS = "127.0.0.1:1"
IS_STANDBY = text("SELECT pg_is_in_recovery()")
PORT = text("SELECT inet_server_port()")
BACKEND = text("SELECT pg_backend_pid()")
WRITE = text("CREATE TABLE IF NOT EXISTS written ()")
PROMOTE = text("SELECT pg_promote()")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    with running_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    async with silent_address() as address:
        yield address


async def port_of(settings: PostgresSettings) -> int:
    """Return the port of the server that an engine with these settings uses."""
    engine = create_engine(settings, pool_size=1)
    try:
        async with asyncio.timeout(TIMEOUT):
            port: int = (await execute(engine, PORT)).scalar_one()
            return port
    finally:
        await engine.dispose()


async def refusal(settings: PostgresSettings) -> DatabaseUnavailable:
    with pytest.raises(DatabaseUnavailable) as refused:
        await port_of(settings)
    return refused.value


@pytest.mark.parametrize("first", ["standby", "silent", "closed"])
async def test_primary_is_found_behind_a_server_that_is_of_no_use(
    pair: tuple[Server, Server], silent: str, first: str
) -> None:
    primary, standby = pair
    address = {"standby": standby.address, "silent": silent, "closed": NOTHING_LISTENS}[first]
    settings = hosts_settings(address, primary.address)
    assert await port_of(settings) == primary.port
    assert str(settings.postgres_servers().first) == primary.address


async def test_error_names_every_server_that_was_tried(pair: tuple[Server, Server], silent: str) -> None:
    _, standby = pair
    unavailable = await refusal(hosts_settings(standby.address, silent, NOTHING_LISTENS))
    assert str(unavailable) == (
        f"ConnectionError: {standby.address}: is read-only; {silent}: TimeoutError; "
        f"{NOTHING_LISTENS}: ConnectionRefusedError"
    )
    assert "read-only" in str(await refusal(hosts_settings(standby.address)))


async def test_login_is_rejected_only_if_every_server_rejects_it(pair: tuple[Server, Server]) -> None:
    primary, standby = pair
    wrong = {"postgres_password": "wrong"}
    assert isinstance(await refusal(hosts_settings(standby.address, primary.address, **wrong)), LoginRejected)
    rejected_by_one = await refusal(hosts_settings(primary.address, NOTHING_LISTENS, **wrong))
    assert not isinstance(rejected_by_one, LoginRejected)
    assert "InvalidPasswordError" in str(rejected_by_one)


async def test_caller_with_little_patience_gets_past_a_silent_server(pair: tuple[Server, Server], silent: str) -> None:
    """Otherwise each of its attempts would end at the same server."""
    primary, _ = pair
    engine = create_engine(hosts_settings(silent, primary.address), pool_size=1)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):  # less than the connect timeout
            await execute(engine, PORT)
    async with asyncio.timeout(0.4):
        assert (await execute(engine, PORT)).scalar_one() == primary.port
    await engine.dispose()


async def test_errors_of_a_plain_driver_connection_count_as_unavailable() -> None:
    with pytest.raises(DatabaseUnavailable), database_errors():
        raise asyncpg.TargetServerAttributeNotMatched("None of the hosts match")


async def test_connection_to_a_server_that_became_read_only_is_not_used_again(engine: AsyncEngine) -> None:
    before = (await execute(engine, BACKEND)).scalar_one()
    await execute(engine, text("SET default_transaction_read_only = on"))
    with pytest.raises(DatabaseUnavailable, match="ReadOnlySQLTransactionError 25006"):
        await execute(engine, WRITE)
    assert (await execute(engine, BACKEND)).scalar_one() != before


async def test_connections_to_a_server_that_shuts_down_are_not_used_again(engine: AsyncEngine) -> None:
    async def end_ours() -> None:
        with database_errors():
            async with engine.begin() as connection:
                await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    async with engine.connect() as first, engine.connect() as second:
        before = {(await each.execute(BACKEND)).scalar_one() for each in (first, second)}
    with pytest.raises(DatabaseUnavailable):
        await end_ours()
    async with engine.connect() as first, engine.connect() as second:
        after = {(await each.execute(BACKEND)).scalar_one() for each in (first, second)}
    assert not before & after


@pytest.mark.parametrize("loss", ["killed", "paused"])
async def test_engine_follows_a_failover(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    monkeypatch.setattr("notify_database.engine.ANSWER_TIME", 0.1)
    with running_pair(tmp_path_factory.mktemp("failover")) as (primary, standby):
        settings = hosts_settings(primary.address, standby.address)
        engine = create_engine(settings, pool_size=1, statement_timeout=0.5)
        await execute(engine, WRITE)
        promoting, loss_of_primary = standby.engine(), ExitStack()
        if loss == "killed":
            primary.kill()
        else:
            loss_of_primary.enter_context(primary.paused())
        with pytest.raises(DatabaseUnavailable):
            await execute(engine, WRITE)
        await execute(promoting, PROMOTE)

        async def is_writable() -> bool:
            with suppress(DatabaseUnavailable):
                await execute(engine, WRITE)
                return True
            return False

        await eventually(is_writable, "the new primary is found")
        assert not (await execute(engine, IS_STANDBY)).scalar_one()
        assert (await execute(engine, PORT)).scalar_one() == standby.port
        assert await database_problem(engine) is not None  # nothing was migrated here
        loss_of_primary.close()
        await promoting.dispose()
        await engine.dispose()
