"""Test the containers with TLS: the reverse proxy of the profile `edge`, and deploy/tls/compose.yml."""

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from notify_common.contracts.channels import Channel
from notify_local.ports import Ports
from notify_local.stack import SERVICES
from support.compose import NAME, Compose, docker
from support.event_stream import Reader
from support.processes import all_final
from support.services import eventually

pytestmark = pytest.mark.timeout(600)
CLIENTS = "SELECT json_agg(ssl) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE client_addr IS NOT NULL"
BODY = {"user_id": 1, "message": "Your code: 11111", "channels": list(Channel)}
EDGE_USER = "10001"


class SecureCompose(Compose):
    """The system with TLS everywhere, and certificates of a test authority."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "env")
        self.authority = trustme.CA()
        self.folder = folder
        ports = Ports()
        self.https_port = ports.free(28443)
        self.set(
            COMPOSE_PROFILES="edge",
            COMPOSE_FILE="docker-compose.yml:deploy/tls/compose.yml",
            EDGE_ADDRESS="127.0.0.1",
            EDGE_HTTPS_PORT=str(self.https_port),
            EDGE_HTTP_PORT=str(ports.free(28081)),
            EDGE_CERTIFICATES=str(folder / "edge"),
            TLS_CERTIFICATES=str(folder / "tls"),
        )
        (folder / "tls/ca").mkdir(parents=True)
        self.authority.cert_pem.write_to_path(folder / "tls/ca/ca.pem")
        services = json.loads(self.run("config", "--format", "json"))["services"]
        for server in ("rabbitmq", "postgres"):
            image = services[server]["image"]
            user = docker("run", "--rm", "--entrypoint=id", image, "-u", server).strip()
            self.issue(server, folder / "tls" / server, user)
        self.issue("localhost", folder / "edge", EDGE_USER)
        for each in (folder, *folder.rglob("*/")):
            each.chmod(0o755)

    def issue(self, host: str, folder: Path, user: str) -> None:
        """Write a new certificate, whose key only `user` can read."""
        folder.mkdir(exist_ok=True)
        issued = self.authority.issue_cert(host)
        (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        (folder / "tls.key").unlink(missing_ok=True)
        (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
        (folder / "tls.key").chmod(0o600)
        docker("run", "--rm", f"--volume={folder}:/folder", "debian:trixie-slim", "chown", user, "/folder/tls.key")

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def over_https(self) -> httpx.AsyncClient:
        client = self.gateway()
        url, headers = f"https://localhost:{self.https_port}", client.headers
        return httpx.AsyncClient(base_url=url, headers=headers, verify=self.context(), timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureCompose]:
    compose = SecureCompose(tmp_path_factory.mktemp("tls"))
    compose.run("down", "--volumes")
    try:
        asyncio.run(compose.up("--build"))
        yield compose
    finally:
        compose.run("down", "--volumes")


async def test_notification_is_posted_and_streamed_through_the_edge(compose: SecureCompose) -> None:
    async with compose.over_https() as client, client.stream("GET", "/api/events") as stream:
        reader = Reader(stream)
        assert (first := await reader.next()) is not None
        assert first["event"] == "live"
        posted = await client.post("/api/notifications", json=BODY)
        assert posted.status_code == 201, posted.text
        assert (await reader.status())["notification_id"] == posted.json()["id"]
        await all_final(client, [posted.json()["id"]])


async def test_every_connection_between_containers_is_encrypted(compose: SecureCompose) -> None:
    async def all_encrypted() -> bool:  # the management API takes a few seconds to show a new connection
        with compose.management() as management:
            connections = management.get("/api/connections").raise_for_status().json()
        assert all(connection["ssl"] for connection in connections)
        names = {connection["user_provided_name"].split("@")[0].split(".")[0] for connection in connections}
        return names == set(SERVICES)

    await eventually(all_encrypted, "every service has a connection to RabbitMQ", timeout=30)
    query = ("exec", "-T", "postgres", "psql", "-U", "notify", "-d", "notifications", "-Atc", CLIENTS)
    clients = json.loads(compose.run(*query))
    assert clients
    assert all(clients)
    async with compose.over_https() as client:

        async def consumer_is_seen() -> bool:
            overview = (await client.get("/api/overview")).json()
            return bool(overview["channels"][0]["consumers"] == 1)

        await eventually(consumer_is_seen, "the gateway reads queue statistics over HTTPS", timeout=30)


async def test_edge_finds_a_gateway_that_was_replaced(compose: SecureCompose) -> None:
    template = "{{(index .IPAM.Config 0).Subnet}}"  # as in docs/operations.md
    subnet = docker("network", "inspect", "--format", template, f"{NAME}_proxied").strip()
    compose.set(TRUSTED_PROXIES=subnet)
    before = compose.containers("gateway")
    await compose.up()
    assert compose.containers("gateway") != before
    async with compose.over_https() as client:

        async def answers() -> bool:
            return (await client.post("/api/notifications", json=BODY)).status_code == 201

        await eventually(answers, "the edge reaches the new gateway", timeout=30)


async def test_edge_serves_a_new_certificate_after_a_reload(compose: SecureCompose) -> None:
    def certificate() -> str:
        return ssl.get_server_certificate(("localhost", compose.https_port))

    before = certificate()
    compose.issue("localhost", compose.folder / "edge", EDGE_USER)
    compose.run("kill", "--signal", "USR2", "edge")

    async def renewed() -> bool:
        return certificate() != before

    await eventually(renewed, "the new certificate is served")


def test_edge_stops_gracefully(compose: SecureCompose) -> None:
    [container] = compose.containers("edge")
    compose.run("stop", "edge")
    assert json.loads(docker("inspect", container))[0]["State"]["ExitCode"] == 0
