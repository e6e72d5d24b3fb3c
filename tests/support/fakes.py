"""Fakes at the edge of the system: providers, and a network that can be cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from notify_common.contracts.messages import DeliveryRequested

Answer = Callable[[DeliveryRequested], Awaitable[str | None]]


class FakeProvider:
    """Answers as it is told and remembers what it was asked to send."""

    def __init__(self, answer: Answer | None = None) -> None:
        self._answer = answer
        self.calls: list[DeliveryRequested] = []
        self.called = asyncio.Event()

    async def send(self, request: DeliveryRequested) -> str | None:
        self.calls.append(request)
        self.called.set()
        return await self._answer(request) if self._answer else f"message-{len(self.calls)}"

    async def aclose(self) -> None:
        """Nothing is open."""


class CuttableNetwork:
    """A TCP proxy: its port can be closed and its connections cut, or they freeze, as when a server dies."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def before(cls, host: str, port: int) -> AsyncIterator["CuttableNetwork"]:
        """One that leads there, open until the context ends."""
        network = cls(host, port)
        await network.open()
        try:
            yield network
        finally:
            await network.close()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        """Nothing passes any more, and nobody is told: a cable is pulled."""
        self._flowing.clear()

    async def thaw(self) -> None:
        """New connections work; the frozen ones are gone."""
        await self.cut()
        self._flowing.set()

    async def cut(self) -> None:
        """End every connection; new ones are taken still, if the port is open."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Nothing listens any more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            target_reader, target_writer = await asyncio.open_connection(*self._target)
            try:
                await asyncio.gather(self._copy(reader, target_writer), self._copy(target_reader, writer))
            finally:
                target_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
