"""Limit what is read of a response, because a hostile receiver could otherwise send without an end."""

import asyncio
import re
import ssl
from typing import Any

import httpcore
from typing_extensions import override

from notify_webhook_sender.bounded_tls import BoundedTLS, ResponseTooLarge

MAX_RESPONSE = 32 * 1024  # bytes
# Parsing blocks the event loop, and the smallest headers and chunks have 5 or 6 bytes each.
READ_SIZE = 4 * 1024  # bytes
MAX_READS = 100  # for each response
MAX_INFORMATIONAL = 10  # for each response
INFORMATIONAL = re.compile(rb"^HTTP/1\.\d 1\d\d\b", re.MULTILINE)


class BoundedStream(httpcore.AsyncNetworkStream):
    """A connection on which each response may only have so many bytes.

    A response is what is read between two writes, because a request is written before its response is read.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._size = self._reads = self._informational = 0

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read more of the response, or raise `ResponseTooLarge`."""
        if self._reads:
            # With TLS, a read may return data that has been received before, without yielding to the event loop.
            await asyncio.sleep(0)
        self._reads += 1
        rest = MAX_RESPONSE - self._size
        if self._reads > MAX_READS or rest <= 0:
            raise ResponseTooLarge
        data = await self._stream.read(min(max_bytes, READ_SIZE, rest), timeout)
        self._size += len(data)
        self._informational += len(INFORMATIONAL.findall(data))
        if self._informational > MAX_INFORMATIONAL:
            raise ResponseTooLarge
        return data

    @override
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write a part of the next request."""
        self._size = self._reads = self._informational = 0
        await self._stream.write(buffer, timeout)

    @override
    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    @override
    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Return the connection with TLS, which has the same limits."""
        return BoundedStream(await BoundedTLS.start(self._stream, ssl_context, server_hostname, timeout))

    @override
    def get_extra_info(self, info: str) -> Any:
        """Return what the stream knows about the connection."""
        return self._stream.get_extra_info(info)
