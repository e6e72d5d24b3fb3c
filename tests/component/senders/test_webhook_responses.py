"""Responses of hostile webhook receivers must cost the sender little, and its other receivers nothing."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable

import pytest
from notify_common.sending.errors import TemporaryFailure, UnknownOutcome
from notify_webhook_sender import webhook
from notify_webhook_sender.bounded_stream import MAX_RESPONSE
from notify_webhook_sender.settings import WebhookSenderSettings
from notify_webhook_sender.webhook import MAX_PARTS, Webhook
from support.conformance import SECRET, request
from support.services import eventually
from support.webhook_peer import key

CONCURRENCY = 3
ENOUGH = 20  # calls, more than there are connections
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HELD = b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 8000\r\n\r\n" + b"x" * 8000
HINT = b"HTTP/1.1 103 Early Hints\r\n\r\n"
HEADERS = b"HTTP/1.1 500 X\r\n" + b"a:\r\n" * 24_000 + b"content-length: 0\r\n\r\n"
CHUNKS = b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000


class Receiver:
    """An HTTP receiver under every name below `localhost` that responds with the given bytes."""

    def __init__(self) -> None:
        self.response: Iterable[bytes] = [OK]
        self.connections = 0
        self.open_connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    def url(self, host: str = "hooks") -> str:
        assert self._server is not None
        return f"http://{host}.localhost:{self._server.sockets[0].getsockname()[1]}/"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")

    def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.open_connections:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
                for part in self.response:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)  # uvloop sends at the end of an iteration, and `drain` does not wait for it
        except (asyncio.IncompleteReadError, ConnectionError):
            self.open_connections.discard(writer)
            writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.open()
    yield receiver
    receiver.close()


@pytest.fixture
async def provider(receiver: Receiver) -> AsyncIterator[Webhook]:
    settings = {"webhook_secrets": key(SECRET), "webhook_allowed_networks": "127.0.0.0/8", "concurrency": CONCURRENCY}
    provider = Webhook(WebhookSenderSettings.model_validate({"webhook_provider": "http", **settings}))
    yield provider
    receiver.close()
    await provider.aclose()


async def test_held_response_bodies_delay_nobody(
    receiver: Receiver, provider: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "READ_TIMEOUT", 60)
    async with asyncio.timeout(10):
        receiver.response = [HELD]
        for number in range(ENOUGH):
            await provider.send(request(receiver.url(f"h{number}.evil")))
        receiver.response = [OK]
        await provider.send(request(receiver.url()))


async def test_only_so_many_connections_wait_for_response_bodies(
    receiver: Receiver, provider: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "READ_TIMEOUT", 60)
    monkeypatch.setattr(webhook, "MAX_FINISHING", 2)
    receiver.response = [HELD]
    await asyncio.gather(*(provider.send(request(receiver.url(f"h{number}.evil"))) for number in range(ENOUGH)))

    async def closed() -> bool:
        return len(receiver.open_connections) == 2

    await eventually(closed, "the connections that have waited longest are closed")


async def test_connection_is_reused_after_a_short_body(receiver: Receiver, provider: Webhook) -> None:
    receiver.response = [SHORT]
    sent = itertools.count(1)

    async def reused() -> bool:
        await provider.send(request(receiver.url()))
        return receiver.connections < next(sent)

    await eventually(reused, "a connection is reused")


async def test_limit_is_for_each_response_and_not_for_the_connection(receiver: Receiver, provider: Webhook) -> None:
    receiver.response = [LONG.replace(b"200", b"500")]
    for _ in range(2 + MAX_RESPONSE // len(LONG)):
        with pytest.raises(TemporaryFailure, match="http_500"):
            await provider.send(request(receiver.url()))
    assert receiver.connections == 1


async def test_idle_connections_are_limited_and_the_oldest_is_closed(receiver: Receiver, provider: Webhook) -> None:
    for number in range(ENOUGH):
        await provider.send(request(receiver.url(f"h{number}")))

    async def closed() -> bool:
        return len(receiver.open_connections) == CONCURRENCY

    await eventually(closed, "the oldest connections are closed")
    await provider.send(request(receiver.url(f"h{ENOUGH - 1}")))
    assert receiver.connections == ENOUGH


async def test_connection_that_the_receiver_closed_is_not_reused(receiver: Receiver, provider: Webhook) -> None:
    await provider.send(request(receiver.url()))
    [writer] = receiver.open_connections
    writer.close()
    await writer.wait_closed()
    await provider.send(request(receiver.url()))
    assert receiver.connections == 2


@pytest.mark.parametrize(
    "response",
    [
        itertools.repeat(HINT),
        itertools.repeat(HINT * 1000),
        [HEADERS],
        itertools.chain([b"HTTP/1.1 200 "], itertools.repeat(b"x")),
    ],
    ids=["hints", "many hints at once", "many headers", "endless status line"],
)
async def test_response_without_end_has_an_unknown_outcome(
    receiver: Receiver, provider: Webhook, response: Iterable[bytes]
) -> None:
    receiver.response = response
    with pytest.raises(UnknownOutcome, match="response_too_large"):
        await provider.send(request(receiver.url()))

    async def closed() -> bool:
        return not receiver.open_connections

    await eventually(closed, "the connection is closed")


async def test_few_informational_responses_are_skipped(receiver: Receiver, provider: Webhook) -> None:
    receiver.response = [HINT * 3, SHORT]
    assert await provider.send(request(receiver.url()))


async def test_body_in_tiny_chunks_is_read_only_in_part(receiver: Receiver, provider: Webhook) -> None:
    receiver.response = [CHUNKS]
    with pytest.raises(TemporaryFailure) as raised:
        await provider.send(request(receiver.url()))
    assert raised.value.text == "a" * MAX_PARTS
