"""The HTTPS reverse proxy of deploy/edge in front of a gateway."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from support.edge import CONFIGURATION, Edge, haproxy_for_tests, issue_certificate, running_edge
from support.event_stream import BODY, Reader
from support.fakes import FakeProvider
from support.servers import PROJECT
from support.services import NOWHERE, TIMEOUT, eventually, running_sender, running_status_writer, served_gateway

RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

# HTTP/2, RFC 9113
HEADERS, RST_STREAM, SETTINGS = 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
REFUSED_STREAM = b"\0\0\0\x07"
GET_ROOT = b"\x82\x87\x84\x41\x09localhost"  # HPACK: GET, https, /, and the authority


def frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


@pytest.fixture(scope="module")
def haproxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return haproxy_for_tests(tmp_path_factory.mktemp("haproxy"))


@pytest.fixture
async def edge(haproxy: Path, tmp_path: Path, postgres: PostgresSettings) -> AsyncIterator[Edge]:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as gateway,
        running_edge(haproxy, tmp_path, gateway, per_address=20) as edge,
    ):
        yield edge


class Recorder:
    """A server that records every request as it arrives, and answers it."""

    def __init__(self, *, answers: bool = True) -> None:
        self.requests: list[bytes] = []
        self.checked = asyncio.Event()  # set by the first check of whether it is ready
        self._answers = answers
        self.url = httpx.URL()
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Recorder"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = httpx.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /readyz"):
                    self.checked.set()
                elif not head.startswith(b"GET /livez"):
                    self.requests.append(head)
                    if not self._answers:
                        continue
                writer.write(RESPONSE)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def test_notification_is_posted_and_its_event_is_streamed_over_https(
    haproxy: Path, tmp_path: Path, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as gateway,
        running_edge(haproxy, tmp_path, gateway) as edge,
        edge.client() as client,
        client.stream("GET", "/api/events") as stream,
    ):
        reader = Reader(stream)
        first = await reader.next()
        assert first is not None
        assert first["event"] == "live"
        posted = await client.post("/api/notifications", json=BODY)
        assert posted.status_code == 201
        # The event arrives while the response is open, so that nothing buffers it.
        assert (await reader.status())["notification_id"] == posted.json()["id"]
        assert stream.headers["strict-transport-security"] == "max-age=31536000"


async def test_health_checks_go_to_a_port_that_clients_do_not_reach(haproxy: Path, tmp_path: Path) -> None:
    async with (
        Recorder().running() as api,
        Recorder().running() as health,
        running_edge(haproxy, tmp_path, api.url, health_port=health.url.port),
        asyncio.timeout(TIMEOUT),
    ):
        await health.checked.wait()
        assert not api.checked.is_set()


async def test_plain_http_is_redirected(edge: Edge) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"http://localhost:{edge.http_port}/api/events?user_id=1")
    assert response.status_code == 308
    assert response.headers["location"] == f"{edge.url}/api/events?user_id=1"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_versions_are_refused(edge: Edge) -> None:
    context = edge.context()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("localhost", edge.https_port, ssl=context)


async def test_limits_of_the_gateway_apply_and_are_reported_as_problems(edge: Edge) -> None:
    async with edge.client() as client:
        for size, status in ((256 * 1024, 422), (256 * 1024 + 1, 413)):
            response = await client.post("/api/notifications", content=b"[" + b" " * (size - 2) + b"]")
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b" " * 4096

        # The length of a chunked body is not known before; the gateway measures it.
        response = await client.post("/api/notifications", content=chunks())
        assert response.status_code == 413
        response = await client.get("/api/notifications", headers={"x-long": "x" * 17_000})
        assert response.status_code == 431
        assert response.headers["content-type"] == "application/problem+json"
        response = await client.get("/api/notifications", headers={"x-long": "x" * 30_000})
        assert response.status_code == 400
        response = await client.get("/api/notifications", headers={"x-long": "x" * 15_000})
        assert response.status_code == 200


async def test_addresses_that_a_client_claims_are_replaced(haproxy: Path, tmp_path: Path) -> None:
    async with Recorder().running() as recorder, running_edge(haproxy, tmp_path, recorder.url) as edge:
        claimed = {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1", "X-Forwarded-Proto": "http"}
        async with edge.client() as client:
            await client.get("/", headers={**claimed, "Upgrade": "h2c", "HTTP2-Settings": "x", "Connection": "upgrade"})
    [request] = recorder.requests
    names = [line.split(b":")[0].lower() for line in request.split(b"\r\n")]
    assert names.count(b"x-forwarded-for") == 1
    assert b"x-forwarded-for: 127.0.0.1\r\n" in request.lower()
    assert not {b"forwarded", b"upgrade", b"http2-settings"} & set(names)
    assert b"host: localhost" in request.lower()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % (len(SMUGGLED) + 5),
        b"transfer-encoding: xchunked\r\ncontent-length: %d\r\n\r\n" % len(SMUGGLED),
        b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(SMUGGLED),
        b"content-length: +0\r\n\r\n",
        b"x: y\nContent-Length: 0\r\n transfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_no_request_hides_in_the_body_of_another(haproxy: Path, tmp_path: Path, framing: bytes) -> None:
    """Ambiguous requests are refused, or passed on so that the gateway cannot read them differently."""
    async with Recorder().running() as recorder, running_edge(haproxy, tmp_path, recorder.url) as edge:
        request = b"POST / HTTP/1.1\r\nhost: localhost\r\n" + framing + SMUGGLED
        reader, writer = await edge.connect()
        writer.write(request)
        writer.write(b"GET /last HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(TIMEOUT):
            await reader.read()
        writer.close()
    for head in recorder.requests:
        fields = [line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
        assert fields.count(b"content-length") + fields.count(b"transfer-encoding") <= 1


async def test_connections_of_one_address_are_limited(haproxy: Path, tmp_path: Path) -> None:
    async with (
        Recorder().running() as recorder,
        running_edge(haproxy, tmp_path, recorder.url, per_address=3) as edge,
    ):
        connections = []

        async def refused() -> bool:  # the connections that waited for the start may still be closing
            try:
                connections.append(await edge.connect())
            except (OSError, ssl.SSLError):
                return True
            return False

        await eventually(refused, "a further connection is refused")
        assert len(connections) <= 3
        for _, writer in connections:
            writer.close()

        async def accepted() -> bool:
            return not await refused()

        await eventually(accepted, "connections are accepted again")
        for _, writer in connections:
            writer.close()


async def test_new_connections_of_one_address_are_limited(haproxy: Path, tmp_path: Path) -> None:
    """Handshakes of connections that are closed at once would otherwise take all CPU time of the proxy."""
    async with (
        Recorder().running() as recorder,
        running_edge(haproxy, tmp_path, recorder.url, new_per_address=20) as edge,
        edge.client() as client,
    ):

        async def open_and_close_many() -> None:
            for _ in range(21):
                _, writer = await edge.connect()
                writer.transport.abort()

        assert (await client.get("/first")).status_code == 200
        with pytest.raises((OSError, ssl.SSLError)):
            await open_and_close_many()
        # The connection that is open stays open.
        assert (await client.get("/second")).status_code == 200
    assert len(recorder.requests) == 2


async def test_requests_of_one_http2_connection_are_limited(haproxy: Path, tmp_path: Path) -> None:
    async with Recorder(answers=False).running() as recorder, running_edge(haproxy, tmp_path, recorder.url) as edge:
        reader, writer = await edge.connect("h2")
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
        for stream in range(1, 60, 2):
            writer.write(frame(HEADERS, END_STREAM | END_HEADERS, stream, GET_ROOT))
        refused = 0
        async with asyncio.timeout(TIMEOUT):
            while refused < 20:
                head = await reader.readexactly(9)
                content = await reader.readexactly(int.from_bytes(head[:3]))
                refused += head[3] == RST_STREAM and content == REFUSED_STREAM
        assert len(recorder.requests) <= 10
        writer.transport.abort()


async def test_sockets_suffice_for_all_that_is_allowed() -> None:
    """Otherwise, a few clients with HTTP/2 could take all sockets, and new connections of others would be refused."""
    configuration = CONFIGURATION.read_text()
    total, *clients = map(int, re.findall(r"^ +maxconn (\d+)$", configuration, re.MULTILINE))
    assert len(clients) == 2
    [in_progress] = re.findall(r"be_conn\(gateway\) ge (\d+)", configuration)
    # Listeners, health checks, the resolver and the log have sockets or files, too.
    assert 2 * total >= sum(clients) + int(in_progress) + 200
    [files] = re.findall(r"nofile: (\d+)", (PROJECT / "docker-compose.yml").read_text())
    assert int(files) >= 2 * total + 100


async def test_requests_in_progress_are_limited(haproxy: Path, tmp_path: Path) -> None:
    configuration = CONFIGURATION.read_text().replace("ge 12000", "ge 5")
    (tmp_path / "haproxy.cfg").write_text(configuration)
    async with (
        Recorder(answers=False).running() as recorder,
        running_edge(haproxy, tmp_path, recorder.url, configuration=tmp_path / "haproxy.cfg") as edge,
        edge.client() as client,
    ):
        waiting = [asyncio.create_task(client.get(f"/{number}")) for number in range(5)]
        await eventually(partial(has_requests, recorder, 5), "the gateway has five requests")
        response = await client.get("/another")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "1"
    assert response.json()["detail"] == "The proxy has too many requests in progress."


async def has_requests(recorder: Recorder, number: int) -> bool:
    return len(recorder.requests) == number


async def test_requests_of_one_address_are_limited(haproxy: Path, tmp_path: Path) -> None:
    async with (
        Recorder().running() as recorder,
        running_edge(haproxy, tmp_path, recorder.url, requests_per_address=30) as edge,
        edge.client() as client,
    ):
        responses = [await client.get("/") for _ in range(31)]
    assert responses[0].status_code == 200
    assert responses[-1].status_code == 429
    assert responses[-1].headers["content-type"] == "application/problem+json"
    assert responses[-1].headers["retry-after"] == "10"
    assert len(recorder.requests) <= 30


async def test_tunnels_are_refused(haproxy: Path, tmp_path: Path) -> None:
    async with Recorder().running() as recorder, running_edge(haproxy, tmp_path, recorder.url) as edge:
        reader, writer = await edge.connect()
        writer.write(b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443\r\n\r\n")
        async with asyncio.timeout(TIMEOUT):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nallow: " in head.lower()
    assert recorder.requests == []


async def test_new_certificate_is_served_after_a_reload_and_streams_continue(edge: Edge) -> None:
    async def serial() -> object:
        _, writer = await edge.connect()
        certificate = writer.get_extra_info("peercert")
        writer.close()
        return certificate["serialNumber"]

    before = await serial()
    async with edge.client() as client, client.stream("GET", "/api/events") as stream:
        reader = Reader(stream)
        assert await reader.next() is not None
        issue_certificate(edge.authority, edge.folder)
        edge.reload()

        async def renewed() -> bool:
            return await serial() != before

        await eventually(renewed, "the new certificate is served")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):  # the stream has not ended
                await reader.next()


async def test_certificate_that_cannot_be_used_leaves_the_old_one_in_use(edge: Edge) -> None:
    (edge.folder / "tls.crt").write_text("no certificate")
    edge.reload()

    async def reported() -> bool:
        return "tls.crt" in (edge.folder / "log").read_text()

    await eventually(reported, "the log names the file")
    async with edge.client() as client:
        assert (await client.get("/livez")).status_code == 200
    assert edge.process.poll() is None


async def test_clients_get_a_problem_while_no_gateway_runs(haproxy: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(recorder.running())
        async with running_edge(haproxy, tmp_path, recorder.url) as edge, edge.client() as client:
            assert (await client.get("/")).status_code == 200
            await stack.aclose()
            # On its old connection, the client might get no response: HAProxy may reuse its connection to the gateway
            # before it notices that it is closed. It then closes the client's, and clients retry.
            async with edge.client() as other:
                response = await other.get("/")
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "1"
