"""Limits on what a connection may send beside request bodies, and how the gateway closes connections."""

import asyncio
import gc
import itertools
import json
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial

import httpx
import pytest
from notify_database.engine import PostgresSettings
from notify_gateway.http import arriving_body, server, slow_readers
from notify_gateway.http import closing as http_closing
from notify_gateway.http.middleware import MAX_HEAD, SLICE, LimitsMiddleware
from notify_gateway.http.principal import Scope
from notify_gateway.http.server import MAX_HEADERS, MAX_OUTSIDE_BODY, MAX_PIPELINED, LimitedHttpProtocol
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import BODY, bearer, rows
from support.services import NOWHERE, TIMEOUT, eventually, served_gateway

AUTHENTICATED = {"auth": "on"}
POST = b"POST /api/notifications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
# This response is larger than the buffers of both sockets and of the gateway together.
BUNDLE = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
# This one is as large, but not a file.
OPENAPI = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
# This one is written at once, although it is larger than `MAX_UNREAD`.
ASYNCAPI = b"GET /asyncapi HTTP/1.1\r\nHost: localhost\r\n\r\n"
NOTIFICATION = b'{"user_id": 1, "message": "x", "type": "telegram"}'
CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(NOTIFICATION), NOTIFICATION)
MORE = b"x" * 65_536


@asynccontextmanager
async def connected(url: httpx.URL) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(TIMEOUT):
            yield reader, writer
    finally:
        writer.close()


async def response(reader: StreamReader) -> tuple[int, dict[str, str]]:
    """Read one response; return its status and its headers."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    await reader.readexactly(int(headers.get("content-length", 0)))
    return int(status.split()[1]), headers


def open_protocols() -> list[LimitedHttpProtocol]:
    """Return the gateway's side of all open connections."""
    found = [each for each in gc.get_objects() if type(each) is LimitedHttpProtocol]
    return [each for each in found if each in each.connections]


@contextmanager
def slow_reader(url: httpx.URL) -> Iterator[socket.socket]:
    """Connect a socket whose buffer is small."""
    with closing(socket.socket()) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((url.host, url.port))
        slow.setblocking(False)
        yield slow


async def all_closed() -> bool:
    return not open_protocols()


async def has_begun(path: bytes) -> bool:
    return any(each.url == path for each in open_protocols())


async def paused() -> bool:
    return any(each.flow.write_paused for each in open_protocols())


async def two_wait() -> bool:
    return [each.flow.write_paused for each in open_protocols()] == [True, True]


async def paused_protocol() -> LimitedHttpProtocol:
    """Wait until the gateway's side of the only open connection cannot write; return it."""
    await eventually(paused, "the gateway waits for the client to read")
    (protocol,) = open_protocols()
    return protocol


async def responses(count: int) -> bool:
    """Return whether the gateway has written this many responses."""
    return any(each.server_state.total_requests == count for each in open_protocols())


async def fill(slow: socket.socket) -> None:
    """Request small responses without reading them, until one does not fit into the buffers of the sockets."""
    for requests in itertools.count(1):
        await asyncio.get_running_loop().sock_sendall(slow, ASYNCAPI)
        await eventually(partial(responses, requests), "the response has been written")
        if await paused():
            return


async def sent_until_closed(writer: StreamWriter, part: bytes, *, at_most: int = 40_000_000) -> int:
    """Send `part` again and again; return how many bytes were sent before the gateway closed the connection."""
    sent = 0
    try:
        while sent < at_most:
            writer.write(part)
            await writer.drain()
            sent += len(part)
    except ConnectionError:
        pass
    return sent


async def test_connection_is_closed_if_the_response_does_not_wait_for_the_body(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings=AUTHENTICATED) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(POST + b"Content-Length: 100000\r\n\r\n{")
        status, headers = await response(reader)
        assert (status, headers["connection"]) == (401, "close")
        assert await reader.read() == b""


async def test_connection_stays_open_if_the_body_arrived_before_the_response(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings=AUTHENTICATED) as url,
        connected(url) as (reader, writer),
    ):
        for _ in range(2):
            writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
            status, headers = await response(reader)
            assert status == 401
            assert "connection" not in headers


@pytest.mark.parametrize(("body", "status"), [(b"Content-Length: 3000000", 401), (b"Content-Length: 3000000", 413)])
async def test_client_that_sends_a_long_body_first_gets_the_response(
    postgres: PostgresSettings, engine: AsyncEngine, body: bytes, status: int
) -> None:
    key = (await bearer(engine, Scope.SEND))["Authorization"] if status == 413 else "none"
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings=AUTHENTICATED) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(POST + body + b"\r\nAuthorization: " + key.encode() + b"\r\n\r\n")
        for _ in range(30):
            writer.write(b"x" * 100_000)
            await writer.drain()
        assert (await response(reader))[0] == status
        assert await reader.read() == b""


async def test_trailers_after_a_response_are_not_read_without_end(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings=AUTHENTICATED) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(CHUNKED + b"\r\n" + b"0\r\n")
        assert (await response(reader))[0] == 401
        sent = await sent_until_closed(writer, b"".join(b"X-%d: %b\r\n" % (i, b"x" * 100) for i in range(500)))
        assert sent < 40_000_000


@pytest.mark.parametrize(
    "part",
    [b"X-Trailer: " + b"x" * 100 + b"\r\n", b"x" * 100],
    ids=["many trailers", "one long trailer"],
)
async def test_trailers_have_a_limit(postgres: PostgresSettings, part: bytes) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(CHUNKED + b"\r\n" + CHUNKS + b"A: " + part * (MAX_OUTSIDE_BODY // len(part) + MAX_HEAD))
        status, headers = await response(reader)
        assert (status, headers["connection"]) == (431, "close")
        assert headers["content-type"] == "application/problem+json"
        assert await reader.read() == b""


async def test_chunk_extensions_have_a_limit(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(CHUNKED + b"\r\n" + b"1;" + b"x" * (2 * MAX_OUTSIDE_BODY))
        assert (await response(reader))[0] == 431


def in_chunks(body: bytes, size: int) -> bytes:
    padded = body.ljust(-(-len(body) // size) * size)
    return b"".join(b"%x\r\n%b\r\n" % (size, padded[i : i + size]) for i in range(0, len(padded), size))


async def test_thousands_of_tiny_chunks_are_refused(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(CHUNKED + b"\r\n" + in_chunks(b" " * 2_000, 1))
        assert (await response(reader))[0] == 431


async def test_body_in_small_chunks_is_accepted(postgres: PostgresSettings) -> None:
    chunks = in_chunks(b'{"user_id": 1, "message": "%b", "type": "telegram"}' % (b"x" * 16_000), 32)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        for _ in range(3):  # each request has its own limit
            writer.write(CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n")
            assert (await response(reader))[0] == 201


async def test_large_body_does_not_count_as_headers(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        for _ in range(3):
            # The next head begins in the same packet as the end of a body that is longer than a head may be.
            writer.write(POST + b"Content-Length: 200000\r\n\r\n" + b" " * 200_000 + GET[:20])
            assert (await response(reader))[0] == 422
            writer.write(GET[20:])
            assert (await response(reader))[0] == 200


async def test_trailers_are_never_taken_for_headers(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    key = (await bearer(engine, Scope.SEND, Scope.READ))["Authorization"].encode()
    trailer = b"Authorization: " + key + b"\r\n\r\n"
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings=AUTHENTICATED) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(CHUNKED + b"\r\n" + CHUNKS + trailer)
        assert (await response(reader))[0] == 401
        # The trailers must not become headers of the next request either.
        writer.write(b"GET /api/notifications HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await response(reader))[0] == 401


async def test_request_with_trailers_is_accepted(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    key = (await bearer(engine, Scope.SEND))["Authorization"].encode()
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings=AUTHENTICATED) as url,
        connected(url) as (reader, writer),
    ):
        for _ in range(2):
            writer.write(CHUNKED + b"Authorization: " + key + b"\r\n\r\n" + CHUNKS + b"X-Checksum: 1\r\n\r\n")
            assert (await response(reader))[0] == 201


async def test_unknown_transfer_encoding_gets_a_400_at_once(postgres: PostgresSettings) -> None:
    """The end of the body is unknown, although the encoding looks like the length of an empty one."""
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(POST + b"Transfer-Encoding: 0\r\n\r\n")
        status, headers = await response(reader)
        assert (status, headers["connection"]) == (400, "close")
        assert await reader.read() == b""


async def test_malformed_chunk_gets_a_400_and_the_connection_is_closed(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(CHUNKED + b"\r\nxyz\r\n")
        status, headers = await response(reader)
        assert (status, headers["connection"]) == (400, "close")
        assert await reader.read() == b""


async def test_invalid_request_does_not_replace_the_response_to_an_earlier_one(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(NOTIFICATION) + NOTIFICATION + b"nonsense\r\n\r\n")
        assert (await response(reader))[0] == 201
        assert await reader.read() == b""


async def test_pipelined_requests_have_a_limit(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(GET * 500)
        for _ in range(MAX_PIPELINED + 1):
            assert (await response(reader))[0] == 200
        assert await reader.read() == b""


@pytest.mark.parametrize("fields", [b"X-Long: " + b"x" * 12_000, b"a:\r\n" * 90], ids=["long", "many short headers"])
async def test_unfinished_heads_of_all_connections_have_a_limit(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, fields: bytes
) -> None:
    monkeypatch.setattr(server, "MAX_HEADS", 20_000)
    monkeypatch.setattr(server, "HEAD_TIMEOUT", 3 * TIMEOUT)
    part = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + fields
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        async with connected(url) as (_, first):
            first.write(part)
            async with connected(url) as (reader, second):
                second.write(part)
                assert await reader.read() == b""
            async with connected(url) as (reader, writer):
                writer.write(GET)
                assert (await response(reader))[0] == 200

        async def freed() -> bool:
            async with connected(url) as (reader, writer):
                writer.write(part)
                await writer.drain()
                writer.write(b"\r\n\r\n")
                return bool(await reader.read(12) == b"HTTP/1.1 200")

        await eventually(freed, "the memory of the first head is free again")


async def test_connections_beyond_the_limit_get_a_503(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    request = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(NOTIFICATION)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        async with connected(url) as (first, to_first), connected(url) as (second, to_second):
            for reader, writer in ((first, to_first), (second, to_second)):
                writer.write(request)
                assert (await response(reader))[0] == 100  # the request is in progress
            async with connected(url) as (third, _):
                status, headers = await response(third)
                assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
                assert await third.read() == b""
            to_first.write(NOTIFICATION)
            assert (await response(first))[0] == 201

        async def accepted() -> bool:
            async with connected(url) as (reader, writer):
                writer.write(GET)
                return (await response(reader))[0] == 200

        await eventually(accepted, "the places of the closed connections are free again")


@pytest.mark.parametrize("part", [b"", GET[:20], GET], ids=["no request", "unfinished head", "idle"])
async def test_connection_that_waited_longest_for_a_request_makes_room(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, part: bytes
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (first, to_first),
        connected(url) as (second, to_second),
    ):
        to_first.write(part)
        if part == GET:
            assert (await response(first))[0] == 200
        to_second.write(GET)
        assert (await response(second))[0] == 200
        async with connected(url) as (third, to_third):
            to_third.write(GET)
            assert (await response(third))[0] == 200
            assert await first.read() == b""
            to_second.write(GET)
            assert (await response(second))[0] == 200


@pytest.mark.parametrize("cut", ["one part", "body on its own", "body after a full part"])
@pytest.mark.parametrize("upgrade", [b"Upgrade, HTTP2-Settings\r\nUpgrade: h2c", b"upgrade\r\nupgrade: websocket"])
async def test_upgrade_is_ignored_and_the_body_is_not_taken_for_a_request(
    postgres: PostgresSettings, upgrade: bytes, cut: str
) -> None:
    notification = NOTIFICATION.replace(b"x", GET.replace(b"\r\n", b"  "))
    head = POST + b"Content-Length: %d\r\nConnection: %b\r\n" % (len(notification), upgrade)
    if cut == "body after a full part":
        head += b"Padding: %b\r\n" % (b"x" * (MAX_HEAD - len(head) - len(b"Padding: \r\n\r\n")))
    head += b"\r\n"
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        if cut == "body on its own":
            writer.write(head)
            await eventually(lambda: has_begun(b"/api/notifications"), "the gateway has read the head")
            writer.write(notification + GET)
        else:
            writer.write(head + notification + GET)
        assert [(await response(reader))[0] for _ in range(2)] == [201, 200]


async def test_connect_is_refused(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET)
        assert (await response(reader))[0] == 400
        assert await reader.read() == b""


@pytest.mark.parametrize("before", [b"", GET], ids=["new connection", "after a request"])
@pytest.mark.parametrize("part", [b"\r\n", b"GET /livez"], ids=["empty line", "request line"])
async def test_unfinished_head_is_not_awaited_without_end(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, before: bytes, part: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT", 0.3)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        if before:
            writer.write(before)
            assert (await response(reader))[0] == 200
        writer.write(part)
        assert await reader.read() == b""


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
@pytest.mark.parametrize("sent", [BUNDLE, BUNDLE + GET], ids=["one request", "two requests"])
async def test_client_that_does_not_read_its_response_is_disconnected(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, sent: bytes, half_closed: bool
) -> None:
    monkeypatch.setattr(http_closing, "FLUSH_TIMEOUT", 0.3)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as slow:
            await asyncio.get_running_loop().sock_sendall(slow, sent)
            await paused_protocol()
            if half_closed:
                slow.shutdown(socket.SHUT_WR)
            await eventually(all_closed, "the gateway has closed the connection")


async def test_request_is_told_that_its_client_left_although_another_one_waits_behind_it(
    postgres: PostgresSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as slow:
            await asyncio.get_running_loop().sock_sendall(slow, BUNDLE + GET)
            protocol = await paused_protocol()
        await eventually(all_closed, "the gateway has noticed that the client left")
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*protocol.tasks)
    assert "Traceback" not in caplog.text


async def test_long_response_counts_in_full_until_its_last_part_is_written(postgres: PostgresSettings) -> None:
    """The transport would keep the whole response in memory, however little of it is left to be read."""
    loop = asyncio.get_running_loop()
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as slow:
            await loop.sock_sendall(slow, OPENAPI)
            protocol = await paused_protocol()
            head, _, body = (await loop.sock_recv(slow, 65_536)).partition(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].split()[0])
            while len(body) < length // 2:
                body += await loop.sock_recv(slow, 4096)
            await eventually(paused, "the gateway waits for the client to read again")
            assert length <= protocol.unread_bytes <= length + SLICE
            while len(body) < length:
                body += await loop.sock_recv(slow, 65_536)
            assert json.loads(body)["openapi"]
            assert protocol.unread_bytes == 0


async def test_request_waits_until_its_client_has_read_the_response_before_it(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    """Otherwise its response would wait in the gateway's memory, too, without being counted."""
    loop = asyncio.get_running_loop()
    length = b"Content-Length: %d\r\n\r\n" % len(NOTIFICATION)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        httpx.AsyncClient(base_url=url) as other,
    ):
        with slow_reader(url) as slow:
            await fill(slow)
            await loop.sock_sendall(slow, POST + length + NOTIFICATION)
            await eventually(partial(has_begun, b"/api/notifications"), "the second request has arrived")
            assert (await other.post("/api/notifications", json={**BODY, "user_id": 2})).status_code == 201
            assert await rows(engine, "SELECT user_id FROM notifications") == [(2,)]
            received = b""
            while b" 201 Created" not in received:
                received += await loop.sock_recv(slow, 65_536)
    assert await rows(engine, "SELECT user_id FROM notifications ORDER BY user_id") == [(1,), (2,)]


async def test_client_may_leave_before_its_event_stream_begins(
    postgres: PostgresSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        async with connected(url) as (_, writer):
            writer.write(GET.replace(b"/livez", b"/v1/events"))
            await eventually(partial(has_begun, b"/v1/events"), "the request has arrived")
            (protocol,) = open_protocols()
        await eventually(all_closed, "the gateway has noticed that the client left")
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*protocol.tasks)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("limit", ["MAX_SLOW_READERS", "MAX_UNREAD_TOGETHER"])
async def test_slow_readers_have_a_limit(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    loop = asyncio.get_running_loop()
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as first, slow_reader(url) as second:
            await loop.sock_sendall(first, BUNDLE)
            await eventually(paused, "the gateway waits for the first client to read")
            (oldest,) = [each for each in open_protocols() if each.flow.write_paused]
            only_one = {"MAX_SLOW_READERS": 1, "MAX_UNREAD_TOGETHER": oldest.unread_bytes}
            monkeypatch.setattr(slow_readers, limit, only_one[limit])
            await loop.sock_sendall(second, BUNDLE)

            async def replaced() -> bool:
                return oldest not in open_protocols() and await paused()

            await eventually(replaced, "the gateway has closed the connection that waited longest")


async def test_unread_responses_of_one_tenant_do_not_cut_off_that_of_another(
    postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = [await bearer(engine, Scope.SEND, Scope.READ, tenant=tenant) for tenant in ("ours", "theirs")]
    long = {"user_id": 1, "message": "\N{GRINNING FACE}" * 16_000, "type": "email"}

    async def request_page(slow: socket.socket, key: dict[str, str]) -> None:
        head = f"GET /api/notifications HTTP/1.1\r\nHost: localhost\r\nAuthorization: {key['Authorization']}\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(slow, head.encode())

    async with served_gateway(NOWHERE, postgres, relaying=False, settings=AUTHENTICATED) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(40):
                for key in (ours, theirs):
                    assert (await client.post("/api/notifications", json=long, headers=key)).status_code == 201
        await eventually(all_closed, "only slow readers are connected")
        with slow_reader(url) as download:
            await request_page(download, ours)
            oldest = await paused_protocol()
            monkeypatch.setattr(slow_readers, "MAX_UNREAD_TOGETHER", oldest.unread_bytes * 5 // 2)
            with slow_reader(url) as first, slow_reader(url) as second:
                for page in (first, second):
                    await request_page(page, theirs)
                await eventually(two_wait, "one of the three connections is closed")
                assert oldest in open_protocols()


async def test_unread_responses_to_pipelined_requests_do_not_cut_off_others(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as download:
            await loop.sock_sendall(download, BUNDLE)
            oldest = await paused_protocol()
            monkeypatch.setattr(slow_readers, "MAX_UNREAD_TOGETHER", oldest.unread_bytes * 5 // 2)
            with slow_reader(url) as first, slow_reader(url) as second:
                for pipelining in (first, second):
                    await loop.sock_sendall(pipelining, BUNDLE + GET)
                await eventually(two_wait, "one of the three connections is closed")
                assert oldest in open_protocols()


@pytest.mark.parametrize(("length", "part"), [(2, b"x"), (1_000_000, MORE * 5)], ids=["short", "too long"])
async def test_body_that_arrives_during_the_response_is_discarded(
    postgres: PostgresSettings, caplog: pytest.LogCaptureFixture, length: int, part: bytes
) -> None:
    loop = asyncio.get_running_loop()
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as slow:
            await loop.sock_sendall(slow, BUNDLE.removesuffix(b"\r\n") + b"Content-Length: %d\r\n\r\n" % length)
            await paused_protocol()
            await loop.sock_sendall(slow, part)
            received = b""
            while more := await loop.sock_recv(slow, 65_536):
                received += more
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    assert "Traceback" not in caplog.text


async def test_response_that_takes_too_long_is_ended_without_a_traceback(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timeouts = {"body_timeout": TIMEOUT, "request_timeout": 2.0}
    monkeypatch.setattr(LimitsMiddleware.__init__, "__kwdefaults__", timeouts)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as slow:
            await asyncio.get_running_loop().sock_sendall(slow, BUNDLE)
            await paused_protocol()
            await eventually(all_closed, "the gateway has closed the connection")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["complete", "unfinished"])
async def test_request_with_too_many_headers_is_refused(postgres: PostgresSettings, end: bytes) -> None:
    head = GET.removesuffix(b"\r\n") + b"a:\r\n" * (MAX_HEADERS + 1)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(head + end)
        status, headers = await response(reader)
        assert (status, headers["connection"]) == (400, "close")
        assert await reader.read() == b""


async def test_idle_connection_keeps_no_request_in_memory(postgres: PostgresSettings) -> None:
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(GET.replace(b"\r\n\r\n", b"\r\nX-Long: x\r\nContent-Length: 2\r\n\r\n{}") * 2)
        for _ in range(2):
            assert (await response(reader))[0] == 200
        (protocol,) = open_protocols()
        assert protocol.cycle.response_complete
        assert (dict(protocol.scope), dict(protocol.cycle.scope), protocol.url) == ({}, {}, b"")
        assert not protocol.cycle.body


async def test_pipelined_heads_of_all_connections_have_a_limit(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_HEADS", 20_000)
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        async with connected(url) as (reader, writer):
            writer.write(GET * (MAX_PIPELINED + 1))
            assert (await reader.read()).count(b"HTTP/1.1 200") <= MAX_PIPELINED
        for _ in range(10):  # the memory of the pipelined heads is free again
            async with connected(url) as (reader, writer):
                writer.write(GET * 5)
                for _ in range(5):
                    assert (await response(reader))[0] == 200


async def test_body_is_freed_when_the_response_begins(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "MAX_BODIES", 80_000)
    body = b"Content-Length: 50000\r\n\r\n" + b" " * 50_000
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        with slow_reader(url) as slow:
            await asyncio.get_running_loop().sock_sendall(slow, BUNDLE.removesuffix(b"\r\n") + body)
            protocol = await paused_protocol()
            assert not protocol.cycle.body
            async with connected(url) as (reader, writer):
                writer.write(POST + body)
                assert (await response(reader))[0] == 422


async def test_body_of_a_pipelined_request_is_refused(postgres: PostgresSettings) -> None:
    post = POST + b"Content-Length: %d\r\n\r\n" % len(NOTIFICATION) + NOTIFICATION
    async with (
        served_gateway(NOWHERE, postgres, relaying=False) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(GET + post)
        assert (await response(reader))[0] == 200
        status, headers = await response(reader)
        assert (status, headers["retry-after"]) == (503, "1")
        writer.write(post)
        assert (await response(reader))[0] == 201
