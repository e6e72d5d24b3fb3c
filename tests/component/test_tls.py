"""TLS to real servers: what is verified, what is refused and why, and that replaced certificates are used."""

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
import httpx
import pytest
import trustme
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.errors import BrokerUnavailable, StartupError
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_database.engine import PostgresSettings, create_engine, database_problem, execute
from notify_database.errors import DatabaseUnavailable
from notify_database.migrate import prepare_database
from notify_gateway.console.queue_statistics import QueueStatisticsClient
from pydantic import HttpUrl
from sqlalchemy import text
from support.event_stream import BODY, post, reading
from support.fakes import FakeProvider
from support.processes import gateway_command
from support.roles import migration_settings
from support.servers import Servers
from support.services import TIMEOUT, eventually, running_sender, running_status_writer, served_gateway
from support.tls_servers import CERTIFIED, Certificates, TlsPostgres, TlsRabbit, running_postgres, running_rabbitmq

UNTRUSTED = (
    "certificate verify failed: (self-signed certificate in certificate chain|unable to get local issuer certificate)"
)


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


@pytest.fixture
async def migrated(postgres_server: TlsPostgres) -> PostgresSettings:
    await prepare_database(migration_settings(postgres_server.settings))
    return postgres_server.settings


@contextmanager
def server_certificate(
    certificates: Certificates, *servers: TlsRabbit | TlsPostgres, not_after: datetime | None = None
) -> Iterator[None]:
    """Let the servers use another certificate for as long as the context lasts."""
    try:
        certificates.issue(not_after=not_after)
        for server in servers:
            server.reload()
        yield
    finally:
        certificates.issue()
        for server in servers:
            server.reload()


async def rabbit_refusal(settings: RabbitSettings) -> str:
    """Return why a connection to RabbitMQ fails."""
    with pytest.raises(BrokerUnavailable) as refused, broker_errors():
        await aio_pika.connect(settings.amqp_url())
    return str(refused.value)


async def postgres_refusal(settings: PostgresSettings) -> str:
    """Return why a connection to PostgreSQL fails."""
    engine = create_engine(settings, pool_size=1)
    try:
        return await database_problem(engine) or ""
    except StartupError as error:
        return str(error)
    finally:
        await engine.dispose()


async def test_everything_works_with_servers_that_accept_only_tls(
    rabbit_node: TlsRabbit, migrated: PostgresSettings
) -> None:
    rabbit, provider = rabbit_node.settings, FakeProvider()
    settings = {"rabbitmq_management_url": rabbit_node.management_url}
    async with (
        running_sender(rabbit, provider),
        running_status_writer(rabbit, migrated),
        served_gateway(rabbit, migrated, settings=settings) as gateway,
        reading(gateway) as (events, live),
    ):
        assert live
        notification = await post(gateway)
        assert [change["status"] for change in await events.until(notification)] == ["sent"]
        await gateway_command("keys", "list", servers=[rabbit, migrated])
        assert await gateway_command("dead", "list", servers=[rabbit, migrated]) == ""
        roles = {name.partition("@")[0] for name in await asyncio.to_thread(rabbit_node.connections)}
        assert roles == {
            "telegram_sender", "telegram_sender.publish", "status_writer", "status_writer.publish",
            "status_writer.events", "gateway", "gateway.live",
        }  # fmt: skip


async def test_queue_statistics_are_read_over_https(rabbit_node: TlsRabbit, certificates: Certificates) -> None:
    declared = DeclaredTopology(rabbit_node.settings, topology.gateway(), [topology.EVENTS], role="test")
    await declared.declare()
    client = QueueStatisticsClient(rabbit_node.settings, [HttpUrl(rabbit_node.management_url)])
    queues = await client.read()
    await client.aclose()
    assert queues is not None
    assert topology.delivery_queue_name(Channel.TELEGRAM) in queues
    with server_certificate(certificates, rabbit_node, not_after=datetime.now(UTC) - timedelta(minutes=1)):
        client = QueueStatisticsClient(rabbit_node.settings, [HttpUrl(rabbit_node.management_url)])
        assert await client.read() is None
    assert await client.read() is not None
    await client.aclose()


def with_other_authority(folder: Path) -> Path:
    file = folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(file)
    return file


async def test_server_certificate_of_another_authority_is_refused(
    rabbit_node: TlsRabbit, postgres_server: TlsPostgres, tmp_path: Path
) -> None:
    other = with_other_authority(tmp_path)
    changed = rabbit_node.settings.model_copy(update={"rabbitmq_ca_file": other})
    assert re.search(UNTRUSTED, await rabbit_refusal(changed))
    for mode in ("verify-ca", "verify-full"):
        verified = postgres_server.settings.model_copy(update={"postgres_ca_file": other, "postgres_sslmode": mode})
        assert re.search(UNTRUSTED, await postgres_refusal(verified))


async def test_private_authority_is_refused_without_its_file(
    rabbit_node: TlsRabbit, postgres_server: TlsPostgres
) -> None:
    rabbit = rabbit_node.settings.model_copy(update={"rabbitmq_ca_file": None})
    assert re.search(UNTRUSTED, await rabbit_refusal(rabbit))
    postgres = postgres_server.settings.model_copy(update={"postgres_ca_file": None})
    assert re.search(UNTRUSTED, await postgres_refusal(postgres))


async def test_server_certificate_for_another_host_is_refused(
    rabbit_node: TlsRabbit, postgres_server: TlsPostgres
) -> None:
    reason = "IP address mismatch, certificate is not valid for '127.0.0.1'"
    assert reason in await rabbit_refusal(rabbit_node.settings.model_copy(update={"rabbitmq_host": "127.0.0.1"}))
    changed = postgres_server.settings.model_copy(update={"postgres_host": "127.0.0.1"})
    assert reason in await postgres_refusal(changed)


async def test_expired_server_certificate_is_refused(
    rabbit_node: TlsRabbit, postgres_server: TlsPostgres, certificates: Certificates
) -> None:
    reason = "certificate verify failed: certificate has expired"
    with server_certificate(
        certificates, rabbit_node, postgres_server, not_after=datetime.now(UTC) - timedelta(minutes=1)
    ):
        assert reason in await rabbit_refusal(rabbit_node.settings)

        async def postgres_refuses() -> bool:  # it takes a moment to read the new files
            return reason in await postgres_refusal(postgres_server.settings)

        await eventually(postgres_refuses, "PostgreSQL's certificate has expired")


async def test_reason_for_a_refused_certificate_is_logged(
    rabbit_node: TlsRabbit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = rabbit_node.settings.model_copy(update={"rabbitmq_ca_file": with_other_authority(tmp_path)})
    declared = DeclaredTopology(settings, topology.gateway(), [topology.EVENTS], role="test")
    with caplog.at_level(logging.WARNING, "notify_common"):
        await declared.restore()
    [record] = [record for record in caplog.records if record.name.startswith("notify")]
    assert re.search(UNTRUSTED, str(record.__dict__["error"]))
    assert settings.rabbitmq_password.get_secret_value() not in caplog.text


@pytest.mark.parametrize("mode", [None, "prefer", "require"])
async def test_modes_without_verification_accept_any_certificate(
    mode: str | None, postgres_server: TlsPostgres
) -> None:
    changes = {"postgres_host": "127.0.0.1", "postgres_sslmode": mode, "postgres_ca_file": None}
    settings = PostgresSettings.model_validate({**postgres_server.settings.model_dump(), **changes})
    engine = create_engine(settings, pool_size=1)
    uses_tls = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert (await execute(engine, uses_tls)).scalar_one() is True
    await engine.dispose()


async def test_plain_text_is_refused_by_servers_that_require_tls(
    rabbit_node: TlsRabbit, postgres_server: TlsPostgres
) -> None:
    plain: dict[str, object] = {"rabbitmq_tls": False, "rabbitmq_ca_file": None}
    assert await rabbit_refusal(rabbit_node.settings.model_copy(update=plain))
    plain = {"postgres_sslmode": "disable", "postgres_ca_file": None}
    settings = PostgresSettings.model_validate({**postgres_server.settings.model_dump(), **plain})
    assert "POSTGRES_USER" in (refusal := await postgres_refusal(settings))
    assert "no encryption" in refusal


async def test_tls_is_refused_if_the_server_has_none(servers: Servers, certificates: Certificates) -> None:
    tls = {"rabbitmq_tls": True, "rabbitmq_ca_file": certificates.ca}
    assert "SSL" in await rabbit_refusal(servers.rabbit.model_copy(update=tls))
    for mode in ("require", "verify-full"):
        ca = None if mode == "require" else certificates.ca
        changes = {"postgres_sslmode": mode, "postgres_ca_file": ca}
        settings = PostgresSettings.model_validate({**servers.postgres.model_dump(), **changes})
        assert "rejected SSL upgrade" in await postgres_refusal(settings)


async def test_rabbitmq_can_require_a_client_certificate(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rabbit")
    with running_rabbitmq(folder, certificates, client_certificates=True) as node:
        assert "CERTIFICATE_REQUIRED" in (await rabbit_refusal(node.settings)).upper().replace(" ", "_")
        own = {"rabbitmq_cert_file": certificates.client_cert, "rabbitmq_key_file": certificates.client_key}
        settings = node.settings.model_copy(update=own)
        async with await aio_pika.connect(settings.amqp_url("test")):
            [name] = await asyncio.to_thread(node.connections)
        assert name.startswith("test@")


async def test_postgresql_can_require_a_client_certificate(
    migrated: PostgresSettings, certificates: Certificates
) -> None:
    engine = create_engine(migrated, pool_size=1)
    password = migrated.postgres_password.get_secret_value()
    await execute(engine, text(f"CREATE ROLE {CERTIFIED} LOGIN PASSWORD '{password}'"))
    await execute(engine, text(f"GRANT CONNECT ON DATABASE {migrated.postgres_database} TO {CERTIFIED}"))
    await engine.dispose()
    user = migrated.model_copy(update={"postgres_user": CERTIFIED})
    assert "connection requires a valid client certificate" in await postgres_refusal(user)
    own = {"postgres_cert_file": certificates.client_cert, "postgres_key_file": certificates.client_key}
    engine = create_engine(user.model_copy(update=own), pool_size=1)
    assert (await execute(engine, text("SELECT current_user"))).scalar_one() == CERTIFIED
    await engine.dispose()


async def test_replaced_certificates_are_used_without_a_restart(
    rabbit_node: TlsRabbit, migrated: PostgresSettings, postgres_server: TlsPostgres, certificates: Certificates
) -> None:
    rabbit, provider = rabbit_node.settings, FakeProvider()
    disconnect = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user")
    async with (
        running_sender(rabbit, provider),
        running_status_writer(rabbit, migrated),
        served_gateway(rabbit, migrated) as gateway,
    ):
        async with reading(gateway) as (events, _):
            await events.until(await post(gateway))
        try:
            certificates.issue(trustme.CA())
            for server in (rabbit_node, postgres_server):
                server.reload()
            await asyncio.to_thread(rabbit_node.disconnect_all)
            engine = create_engine(migrated, pool_size=1)
            with pytest.raises(DatabaseUnavailable):  # this connection is closed, too
                await execute(engine, disconnect)
            await engine.dispose()

            async with httpx.AsyncClient(base_url=gateway, timeout=TIMEOUT) as client:
                ids = []

                async def accepted() -> bool:  # a request fails if it gets a connection that was closed
                    response = await client.post("/api/notifications", json=BODY)
                    ids.extend([response.json()["id"]] if response.status_code == 201 else [])
                    return bool(ids)

                async def sent() -> bool:
                    response = await client.get(f"/api/notifications/{ids[0]}")
                    return response.status_code == 200 and response.json()["status"] == "sent"

                await eventually(accepted, "a notification is accepted over a new connection")
                await eventually(sent, "it is sent over new connections")
        finally:
            certificates.issue()
            for server in (rabbit_node, postgres_server):
                server.reload()
