"""Limit the encrypted bytes of a response, because TLS itself consumes messages that never become part of it."""

import asyncio
import ssl
from pathlib import Path
from typing import Any, Self

import httpcore
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream
from typing_extensions import override

MAX_HANDSHAKE = 128 * 1024  # bytes; OpenSSL accepts 100 KiB of certificates
MAX_ENCRYPTED = 48 * 1024  # bytes for each response: 32 KiB of it, the overhead of TLS, and some session tickets
READ_SIZE = 4 * 1024  # bytes
RECORD_SIZE = 16 * 1024  # bytes; the most that TLS encrypts at once
# For TLS 1.2, this is Python's default without DHE, because there the receiver chooses the group: a handshake with
# 8,192 bits blocked the event loop for 180 ms, and OpenSSL accepts 10,000 bits.
CIPHERS = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!SHA1:!AESCCM"


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context for receivers, with which a receiver cannot make handshakes expensive or repeat them."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class ResponseTooLarge(httpcore.RemoteProtocolError):
    """The response exceeds a limit."""


class EncryptedStream(ByteStream):
    """The bytes below TLS, of which only `allowance` more may be received."""

    def __init__(self, tcp: httpcore.AsyncNetworkStream) -> None:
        self.allowance = MAX_HANDSHAKE
        self._tcp = tcp

    @override
    async def receive(self, max_bytes: int = READ_SIZE) -> bytes:
        """Receive a few bytes, or raise `ResponseTooLarge`.

        In TLS 1.3, a receiver may send session tickets without an end. OpenSSL parses all that it is given at once, and
        waits for more. So it is given little, and the read below yields to the event loop each time.
        """
        if self.allowance <= 0:
            raise ResponseTooLarge
        data = await self._tcp.read(min(max_bytes, READ_SIZE, self.allowance))
        if not data:
            raise EndOfStream
        self.allowance -= len(data)
        return data

    @override
    async def send(self, item: bytes) -> None:
        """Send encrypted bytes."""
        await self._tcp.write(item)

    @override
    async def send_eof(self) -> None:
        """Fail, because TLS never needs this."""
        raise NotImplementedError

    @override
    async def aclose(self) -> None:
        """Close the connection."""
        await self._tcp.aclose()


class BoundedTLS(httpcore.AsyncNetworkStream):
    """A connection with TLS on which each response may only have so many encrypted bytes.

    httpcore's own stream cannot be given another stream below TLS.
    """

    def __init__(self, tcp: httpcore.AsyncNetworkStream, encrypted: EncryptedStream, tls: TLSStream) -> None:
        self._tcp, self._encrypted, self._tls = tcp, encrypted, tls

    @classmethod
    async def start(
        cls, tcp: httpcore.AsyncNetworkStream, context: ssl.SSLContext, hostname: str | None, timeout: float | None
    ) -> Self:
        """Finish the handshake, or close the connection and raise `ConnectError` or `ConnectTimeout`."""
        encrypted = EncryptedStream(tcp)
        try:
            async with asyncio.timeout(timeout):
                tls = await TLSStream.wrap(
                    encrypted, server_side=False, hostname=hostname, ssl_context=context, standard_compatible=False
                )
        except BaseException as error:
            await tcp.aclose()
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout(str(error)) from error
            # Nothing of the request has been sent.
            failures = EndOfStream, BrokenResourceError, ssl.SSLError, httpcore.NetworkError, ResponseTooLarge
            if isinstance(error, failures):
                raise httpcore.ConnectError(str(error)) from error
            raise
        return cls(tcp, encrypted, tls)

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read more of the response, or raise `ResponseTooLarge`."""
        try:
            async with asyncio.timeout(timeout):
                return await self._tls.receive(max_bytes)
        except EndOfStream:
            return b""
        except BrokenResourceError as error:
            raise httpcore.ReadError(str(error)) from error
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error

    @override
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write a part of the next request."""
        # TLS may also write on its own while a response is read, and this must not extend the response.
        self._encrypted.allowance = MAX_ENCRYPTED
        try:
            async with asyncio.timeout(timeout):
                # A buffer of TLS grows to what is written at once, and does not shrink while the connection is open.
                for start in range(0, len(buffer), RECORD_SIZE):
                    await self._tls.send(buffer[start : start + RECORD_SIZE])
        except (BrokenResourceError, EndOfStream) as error:
            raise httpcore.WriteError(str(error)) from error
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error

    @override
    async def aclose(self) -> None:
        """Close the connection."""
        await self._tls.aclose()

    @override
    def get_extra_info(self, info: str) -> Any:
        """Return what the stream knows about the connection."""
        if info == "ssl_object":
            return self._tls.extra(TLSAttribute.ssl_object)  # noqa: S610 - this is not Django's
        return self._tcp.get_extra_info(info)
