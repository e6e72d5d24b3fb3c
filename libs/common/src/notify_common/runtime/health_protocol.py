"""The HTTP protocol of the workers' health ports."""

import asyncio
from typing import ClassVar

from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 100


class HealthProtocol(H11Protocol):
    """uvicorn's h11 protocol with a limit on connections; a new connection closes the oldest.

    h11 refuses heads that are longer than 16 KiB. httptools, which uvicorn prefers, reads them without a limit, so that
    anyone who reaches the port could take up the worker's memory.
    """

    _open: ClassVar[dict["HealthProtocol", None]] = {}  # the oldest comes first

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._open[self] = None
        if len(self._open) > MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._open.pop(self, None)
        super().connection_lost(exc)
