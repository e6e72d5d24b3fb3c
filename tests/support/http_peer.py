"""The base class of the fake HTTP providers."""

import asyncio
import ssl
from abc import ABC, abstractmethod
from dataclasses import dataclass

from support.conformance import Behaviour


@dataclass(frozen=True)
class HttpRequest:
    """A complete HTTP request; its header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


class HttpPeer(ABC):
    """An HTTP server on 127.0.0.1 with a configurable `behaviour`; subclasses define the responses."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.behaviour, self.connections = Behaviour.ACCEPT, 0
        self._tls = tls
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @abstractmethod
    async def answer(self, request: HttpRequest) -> tuple[int, dict[str, str], bytes]:
        """Return the status, headers and body of the response."""

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                if self.behaviour in {Behaviour.BREAK, Behaviour.CUT_IN_DATA}:
                    writer.transport.abort()
                    return
                if self.behaviour is Behaviour.HANG:
                    await asyncio.Event().wait()
                status, extra, content = await self.answer(HttpRequest(head.split(" ")[1], headers, body))
                response_headers = {"Content-Length": str(len(content)), **extra}
                fields = "".join(f"{name}: {value}\r\n" for name, value in response_headers.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
