"""The client library in tests: its two clients behind one interface, and a server that fails as a test wants."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import httpx
from notify_client import AsyncClient, Client
from notify_client.methods import Resource

Item = TypeVar("Item")
KINDS = ("sync", "async")


class InThreads:
    """A `Client` with the interface of an `AsyncClient`: its calls run in threads, because servers run in this one."""

    def __init__(self, part: object) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if isinstance(value, Resource):
            return InThreads(value)
        if name == "list":
            return lambda *args, **kwargs: iterate(value(*args, **kwargs))
        return partial(asyncio.to_thread, value)


async def iterate(items: Iterator[Item]) -> AsyncIterator[Item]:
    """Iterate in threads."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield cast("Item", item)


@asynccontextmanager
async def connected(kind: str, url: object, api_key: str | None = None, **options: Any) -> AsyncIterator[AsyncClient]:
    """Create a client of this kind."""
    if kind == "async":
        async with AsyncClient(str(url), api_key, **options) as client:
            yield client
    else:
        with Client(str(url), api_key, **options) as client:
            yield cast("AsyncClient", InThreads(client))


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


LOSE = "lose"
"""Close the connection without a response."""
HANG = "hang"
"""Never respond."""
FORWARD = "forward"
"""Let the real gateway respond."""
FORWARD_AND_LOSE = "forward and lose"
"""Let the real gateway respond, but lose its response."""
FORWARD_AND_HANG = "forward and hang"
"""Let the real gateway respond, but never send its response."""


@dataclass(frozen=True)
class Received:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FailingServer:
    """A server that handles each request as the next of the steps says, and the rest like the last one."""

    def __init__(self, *steps: Reply | str, gateway: object = "") -> None:
        self._steps = list(steps)
        self._gateway = str(gateway)
        self._connections: set[asyncio.Task[None]] = set()
        self.requests: list[Received] = []
        self.hanging: asyncio.Queue[Received] = asyncio.Queue()
        """The requests whose responses are never sent."""

    def then(self, *steps: Reply | str) -> None:
        """Handle the next requests like this instead."""
        self._steps = list(steps)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve; yield the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().splitlines()
            method, path, _ = head.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Received(method, path, headers, body)
            self.requests.append(request)
            reply = await self._reply(request)
            if reply is not None:
                fields = {"Content-Length": str(len(reply.body)), "Connection": "close", **reply.headers}
                text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
                writer.write(f"HTTP/1.1 {reply.status} X\r\n{text}\r\n".encode() + reply.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._connections.discard(task)

    async def _reply(self, request: Received) -> Reply | None:
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, Reply):
            return step
        if step == LOSE:
            return None
        if step == HANG:
            await asyncio.Event().wait()
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        async with httpx.AsyncClient(base_url=self._gateway) as client:
            response = await client.request(request.method, request.path, headers=headers, content=request.body)
        if step == FORWARD_AND_LOSE:
            return None
        if step == FORWARD_AND_HANG:
            self.hanging.put_nowait(request)
            await asyncio.Event().wait()
        kept = {name: value for name, value in response.headers.items() if name in {"content-type", "retry-after"}}
        return Reply(response.status_code, response.content, kept)
