"""TLS to servers with several addresses: each address is checked against the server's certificate."""

import asyncio
import ssl
from collections.abc import Iterator

import pytest
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors, connect, create_broker
from notify_database.engine import NOT_MIGRATED, PostgresSettings, create_engine, database_problem
from support.rabbitmq_nodes import silent_address, try_first
from support.services import TIMEOUT
from support.tls_servers import HOST, Certificates, TlsPostgres, TlsRabbit, running_postgres, running_rabbitmq

CONNECT_TIMEOUT = 1.0  # seconds
UNCERTIFIED = "127.0.0.1"  # the servers listen here, but their certificates name only `HOST`


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def rabbit_node(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRabbit]:
    with running_rabbitmq(tmp_path_factory.mktemp("rabbit"), certificates, client_certificates=False) as node:
        yield node


@pytest.fixture(scope="module")
def postgres_server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsPostgres]:
    with running_postgres(tmp_path_factory.mktemp("postgres"), certificates) as server:
        yield server


def with_hosts(rabbit: RabbitSettings, *hosts: str) -> RabbitSettings:
    """Return settings with these hosts, of which the first is tried first."""
    given = rabbit.model_dump(exclude_unset=True, exclude={"rabbitmq_host"})
    timeout = {"rabbitmq_connect_timeout": CONNECT_TIMEOUT}
    settings = RabbitSettings.model_validate({**given, **timeout, "rabbitmq_hosts": ",".join(hosts)})
    try_first(settings.rabbitmq_nodes(), hosts[0] if ":" in hosts[0] else f"{hosts[0]}:{rabbit.rabbitmq_port}")
    return settings


async def test_servers_that_stay_silent_in_the_tls_handshake_are_left(
    rabbit_node: TlsRabbit, postgres_server: TlsPostgres
) -> None:
    given = postgres_server.settings.model_dump(exclude_unset=True, exclude={"postgres_host"})
    timeout = {"postgres_connect_timeout": CONNECT_TIMEOUT}
    async with silent_address() as silent, asyncio.timeout(TIMEOUT):
        async with await connect(with_hosts(rabbit_node.settings, silent, HOST), "test"):
            pass
        broker = create_broker(with_hosts(rabbit_node.settings, silent, HOST), "test")
        await broker.connect()
        await broker.stop()
        settings = PostgresSettings.model_validate({**given, **timeout, "postgres_hosts": f"{silent},{HOST}"})
        engine = create_engine(settings, pool_size=1)
        assert await database_problem(engine) == NOT_MIGRATED
        await engine.dispose()


async def test_rabbitmq_node_that_falls_silent_after_the_tls_handshake_is_left_in_time(
    rabbit_node: TlsRabbit, certificates: Certificates
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.cert, certificates.key)
    async with silent_address(tls) as address:
        silent = address.replace(UNCERTIFIED, HOST)
        async with asyncio.timeout(TIMEOUT):  # without a limit, closing the connection takes 30 s
            async with await connect(with_hosts(rabbit_node.settings, silent, HOST), "test"):
                pass
            broker = create_broker(with_hosts(rabbit_node.settings, silent, HOST), "test")
            await broker.connect()
            await broker.stop()


async def test_certificate_of_each_rabbitmq_node_must_name_that_node(rabbit_node: TlsRabbit) -> None:
    right = f"{HOST}:{rabbit_node.settings.rabbitmq_port}"
    settings = with_hosts(rabbit_node.settings, UNCERTIFIED, HOST)
    async with await connect(settings, "test"):
        assert str(settings.rabbitmq_nodes().first) == right
    settings = with_hosts(rabbit_node.settings, UNCERTIFIED, HOST)
    broker = create_broker(settings, "test")
    await broker.connect()
    assert str(settings.rabbitmq_nodes().first) == right
    await broker.stop()
    with pytest.raises(BrokerUnavailable, match="IP address mismatch"), broker_errors():
        await connect(with_hosts(rabbit_node.settings, UNCERTIFIED), "test")


@pytest.mark.parametrize(
    ("mode", "hosts", "problem"),
    [
        ("verify-full", [UNCERTIFIED, HOST], NOT_MIGRATED),
        ("verify-full", [UNCERTIFIED], "IP address mismatch"),
        ("verify-ca", [UNCERTIFIED], NOT_MIGRATED),
    ],
)
async def test_certificate_of_each_postgresql_server_must_name_that_server(
    postgres_server: TlsPostgres, mode: str, hosts: list[str], problem: str
) -> None:
    given = postgres_server.settings.model_dump(exclude_unset=True, exclude={"postgres_host"})
    settings = PostgresSettings.model_validate({**given, "postgres_sslmode": mode, "postgres_hosts": ",".join(hosts)})
    engine = create_engine(settings, pool_size=1)
    assert problem in str(await database_problem(engine))
    await engine.dispose()
