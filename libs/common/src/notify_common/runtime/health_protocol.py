"""The HTTP protocol of the workers' health ports."""

import asyncio
from typing import ClassVar

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 100
MAX_REQUEST = 32 * 1024  # bytes; health checks have no body


class HealthProtocol(H11Protocol):
    """uvicorn's h11 protocol with limits on requests and connections; a new connection closes the oldest.

    h11 refuses heads that are longer than 16 KiB. httptools, which uvicorn prefers, reads them without a limit, so that
    anyone who reaches the port could take up the worker's memory.
    """

    _open: ClassVar[dict["HealthProtocol", None]] = {}  # the oldest comes first
    _received = 0  # bytes of the request that is being read

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._open[self] = None
        if len(self._open) > MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()

    @override
    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_REQUEST:
            self.transport.abort()
        else:
            super().data_received(data)

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._received = 0

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._open.pop(self, None)
        super().connection_lost(exc)
