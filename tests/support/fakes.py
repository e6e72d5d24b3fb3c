"""Fakes at the edge of the system: a provider, and a network that can be cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self

from notify_common.contracts.messages import DeliveryRequested
from typing_extensions import override

Answer = Callable[[DeliveryRequested], Awaitable[str | None]]
OPEN_CHANNEL = b"\x00\x14\x00\x0a"  # AMQP 0-9-1, class 20, method 10


class FakeProvider:
    """A provider that records its requests and returns the result of `answer`, or a new message id without one."""

    def __init__(self, answer: Answer | None = None) -> None:
        self._answer = answer
        self.calls: list[DeliveryRequested] = []
        self.called = asyncio.Event()

    async def send(self, request: DeliveryRequested) -> str | None:
        self.calls.append(request)
        self.called.set()
        return await self._answer(request) if self._answer else f"message-{len(self.calls)}"

    async def aclose(self) -> None:
        """Do nothing, because this fake has nothing to close."""


class CuttableNetwork:
    """A TCP proxy whose port can be closed, and whose connections can be cut, or frozen as if a cable were pulled."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.holds_data = asyncio.Event()
        """Set when a frozen connection has received something since `freeze`."""
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def before(cls, host: str, port: int) -> AsyncIterator[Self]:
        """Run a proxy in front of the server until the context ends."""
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
        """Stop forwarding data without closing any connection."""
        self.holds_data.clear()
        self._flowing.clear()

    def replace_host(self) -> None:
        """Forward data on new connections again. Frozen ones stay open, as if their host had vanished."""
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def thaw(self) -> None:
        """Close the frozen connections, and forward data on new ones again."""
        await self.cut()
        self._flowing.set()

    async def cut(self) -> None:
        """Close every connection; new ones are still accepted if the port is open."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close the port and every connection."""
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
        flowing = self._flowing
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not flowing.is_set():
                    self.holds_data.set()
                    await flowing.wait()
                writer.write(data)
                await writer.drain()
        if flowing is not self._flowing:
            await flowing.wait()  # a vanished host closes nothing
        writer.transport.abort()


class ChannelCuttingNetwork(CuttableNetwork):
    """A network in front of RabbitMQ that cuts connections when they open a channel, as often as `cuts` says."""

    cuts = 0

    @override
    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.cuts and OPEN_CHANNEL in data:
                    self.cuts -= 1
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
