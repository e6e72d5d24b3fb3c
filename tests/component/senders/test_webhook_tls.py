"""What hostile webhook receivers send within TLS must cost the sender little, and its other receivers nothing."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from notify_common.sending.errors import UnknownOutcome, Unreachable
from notify_local.ports import Ports
from notify_webhook_sender.settings import WebhookSenderSettings
from notify_webhook_sender.webhook import Webhook
from support.conformance import SECRET, request
from support.services import TIMEOUT
from support.webhook_peer import key

RESPONSE = b"HTTP/1.1 204 No Content\r\n\r\n"
MANY = 2_000  # session tickets: about 500 KiB


class Receiver:
    """An HTTPS receiver on `localhost`, which sends `tickets` before its first response."""

    def __init__(self, authority: trustme.CA, tickets: int = 2) -> None:
        self.connections = 0
        self.url = ""
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.num_tickets = tickets
        authority.issue_cert("localhost").configure_cert(self._tls)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Receiver"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", ssl=self._tls)
        self.url = f"https://localhost:{server.sockets[0].getsockname()[1]}/"
        yield self
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
                writer.write(RESPONSE)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()


class OldReceiver:
    """An HTTPS receiver on `localhost` with TLS 1.2, run by `openssl s_server`, which answers one request."""

    def __init__(self, authority: trustme.CA, folder: Path, *options: str) -> None:
        self._certificate = folder / "old.pem"
        issued = authority.issue_cert("localhost", key_type=trustme.KeyType.RSA)
        issued.private_key_and_cert_chain_pem.write_to_path(self._certificate)
        self._options = options
        self._port = Ports().free(18_543)
        self.url = f"https://localhost:{self._port}/"

    @asynccontextmanager
    async def running(self, *, renegotiates: bool = False) -> AsyncIterator[None]:
        command = ["openssl", "s_server", "-accept", f"127.0.0.1:{self._port}", "-cert", str(self._certificate)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, "-tls1_2", "-crlf", *self._options, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        assert process.stdout is not None
        await process.stdout.readuntil(b"ACCEPT")
        serving = asyncio.create_task(self._serve(process, renegotiates=renegotiates))
        try:
            yield
        finally:
            serving.cancel()
            process.kill()
            await process.wait()

    async def _serve(self, process: asyncio.subprocess.Process, *, renegotiates: bool) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdout.readuntil(b"webhook-signature")
        if renegotiates:
            process.stdin.write(b"r\n")  # a command to the program
            await process.stdout.readuntil(b"SSL_do_handshake -> 1")
        process.stdin.write(b"HTTP/1.1 204 No Content\n\n")
        await process.stdout.read()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def provider(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Webhook]:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = {
        "webhook_provider": "http",
        "webhook_secrets": key(SECRET),
        "webhook_allowed_networks": "127.0.0.0/8",
        "webhook_ca_file": tmp_path / "ca.pem",
    }
    provider = Webhook(WebhookSenderSettings.model_validate(settings))
    yield provider
    await provider.aclose()


async def test_session_tickets_without_end_are_a_response_that_is_too_large(
    authority: trustme.CA, provider: Webhook
) -> None:
    async with Receiver(authority, MANY).running() as hostile, Receiver(authority).running() as good:
        async with asyncio.timeout(TIMEOUT):
            calls = [asyncio.create_task(provider.send(request(hostile.url))) for _ in range(5)]
            assert await provider.send(request(good.url))
            for call in calls:
                with pytest.raises(UnknownOutcome, match="response_too_large"):
                    await call


async def test_limit_of_encrypted_bytes_is_for_each_response(authority: trustme.CA, provider: Webhook) -> None:
    async with Receiver(authority, 50).running() as receiver:
        for _ in range(500):
            await provider.send(request(receiver.url))
        assert receiver.connections == 1


async def test_receiver_with_an_old_tls_version_is_served(
    authority: trustme.CA, provider: Webhook, tmp_path: Path
) -> None:
    receiver = OldReceiver(authority, tmp_path)
    async with receiver.running(), asyncio.timeout(TIMEOUT):
        assert await provider.send(request(receiver.url))


async def test_receiver_cannot_repeat_the_handshake(authority: trustme.CA, provider: Webhook, tmp_path: Path) -> None:
    """Each handshake costs the sender more CPU time than the receiver."""
    receiver = OldReceiver(authority, tmp_path)
    async with receiver.running(renegotiates=True), asyncio.timeout(TIMEOUT):
        with pytest.raises(Unreachable, match="tls"):
            await provider.send(request(receiver.url))


async def test_receiver_cannot_choose_the_group_of_the_key_exchange(
    authority: trustme.CA, provider: Webhook, tmp_path: Path
) -> None:
    """With a large group, each handshake would block the sender."""
    receiver = OldReceiver(authority, tmp_path, "-cipher", "DHE")
    async with receiver.running(), asyncio.timeout(TIMEOUT):
        with pytest.raises(Unreachable, match="tls"):
            await provider.send(request(receiver.url))
