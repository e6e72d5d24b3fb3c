"""Shared fixtures: one pair of servers per run, and a separate database and virtual host per test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
import uvloop
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings, create_engine
from notify_database.migrate import prepare_database
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on, prepare_topology
from support.compose import LABEL, Compose, docker
from support.roles import migration_settings
from support.servers import ALL_RIGHTS, Servers, permit, servers_for_tests
from support.services import NOWHERE, running_gateway

TEMPLATE = "notify_test_template"


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the same event loop as the services."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--cluster`: the tests of docker-compose.cluster.yml take long, so they run only on their own."""
    parser.addoption("--cluster", action="store_true", help="test docker-compose.cluster.yml, and nothing else")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run either the tests of docker-compose.cluster.yml or all others."""
    chosen = [item for item in items if ("cluster" in item.path.stem) == config.getoption("--cluster")]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(autouse=True)
def no_dotenv(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tests in a folder without a developer's `.env`, which the settings would read."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers_for_tests(Path(tmp_path_factory.mktemp("servers"), "stack")) as servers:
        asyncio.run(_make_template(servers.postgres))
        yield servers


@pytest.fixture
async def postgres(servers: Servers) -> AsyncIterator[PostgresSettings]:
    """Create a migrated database for the test, and yield the administrator's settings."""
    name = f"test_{uuid4().hex}"
    await _administer(servers.postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield servers.postgres.model_copy(update={"postgres_database": name})
    await _administer(servers.postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def empty_postgres(servers: Servers) -> AsyncIterator[PostgresSettings]:
    """Create an empty database for the test."""
    name = f"test_{uuid4().hex}"
    await _administer(servers.postgres, f"CREATE DATABASE {name}")
    yield servers.postgres.model_copy(update={"postgres_database": name})
    await _administer(servers.postgres, f"DROP DATABASE {name} WITH (FORCE)")


another_postgres = empty_postgres  # for a test that needs two


@pytest.fixture
async def with_roles(empty_postgres: PostgresSettings) -> PostgresSettings:
    """Install into an empty database, as Compose does, and return the administrator's settings."""
    await prepare_database(migration_settings(empty_postgres))
    return empty_postgres


@pytest.fixture
async def engine(postgres: PostgresSettings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(postgres, pool_size=5)
    yield engine
    await engine.dispose()


@pytest.fixture
def rabbit(servers: Servers) -> Iterator[RabbitSettings]:
    """Create a virtual host for the test."""
    name = f"test-{uuid4().hex}"
    with servers.management() as management:
        management.put(f"/api/vhosts/{name}").raise_for_status()
        rabbit = servers.rabbit.model_copy(update={"rabbitmq_vhost": name})
        permit(servers, rabbit, ALL_RIGHTS)
        yield rabbit
        management.delete(f"/api/vhosts/{name}").raise_for_status()


@pytest.fixture
async def hand(rabbit: RabbitSettings) -> AsyncIterator[Hand]:
    """Declare the queues of the Telegram sender, and give the test direct access to RabbitMQ."""
    await prepare_topology(rabbit, [*topology.status_writer(), topology.deliveries(Channel.TELEGRAM)])
    async with hand_on(rabbit) as hand:
        yield hand


@pytest.fixture
async def api(postgres: PostgresSettings) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway that never publishes, because RabbitMQ is unavailable."""
    async with running_gateway(NOWHERE, postgres, relaying=False) as client:
        yield client


@pytest.fixture
async def secured_api(postgres: PostgresSettings) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway that requires API keys and never publishes, because RabbitMQ is unavailable."""
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as client:
        yield client


async def _make_template(settings: PostgresSettings) -> None:
    await _administer(settings, f"DROP DATABASE IF EXISTS {TEMPLATE}")
    await _administer(settings, f"CREATE DATABASE {TEMPLATE}")
    template = settings.model_copy(update={"postgres_database": TEMPLATE})
    await prepare_database(migration_settings(template))


async def _administer(settings: PostgresSettings, statement: str) -> None:
    connection = await asyncpg.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        password=settings.postgres_password.get_secret_value(),
        database=settings.postgres_database,
    )
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Build and start the containers once for all tests that need them."""
    compose = Compose(tmp_path_factory.mktemp("compose") / "env")
    compose.run("down", "--volumes")  # remove anything that an interrupted run has left behind
    try:
        asyncio.run(compose.up("--build"))
        yield compose
    finally:
        compose.run("down", "--volumes")
    assert docker("ps", "--all", "--quiet", "--filter", LABEL) == ""
    assert docker("volume", "ls", "--quiet", "--filter", LABEL) == ""
    assert docker("network", "ls", "--quiet", "--filter", LABEL) == ""
