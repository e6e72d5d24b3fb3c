"""The network between the nodes of a cluster, which a test can cut.

Each node reaches each other node through an address of its own, at which proxies listen: one for the port mapper, which
changes the port that it returns to that of the other proxy. A cut link is silent: what was sent arrives once it is
restored, unless an end has given up by then, as if a network had dropped the packets.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations

import uvloop
from notify_local.rabbitmq import NodePorts

TARGET = "127.0.0.1"
CHUNK = 65_536  # bytes
PORT_FOUND = b"w\0"  # the start of epmd's response, before the port: PORT2_RESP in the distribution protocol
Change = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Link:
    """The way from one node to another, by number."""

    source: int
    target: int

    @property
    def address(self) -> str:
        """The address at which `source` reaches `target`. The whole network 127.0.0.0/8 is this machine."""
        return f"127.0.{self.source}.{self.target}"


class Links:
    """Proxies for all links. They have their own thread, because tests block theirs while they start processes."""

    def __init__(self, port: int) -> None:
        """Create a network in which the proxies of all nodes listen on `port`, each at its own address."""
        self._port = port
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._intact: dict[Link, asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    def open(self, nodes: Mapping[int, NodePorts]) -> None:
        """Start the proxies between these nodes."""
        self._thread.start()
        for source, target in permutations(nodes, 2):
            self._run(self._listen(Link(source, target), nodes[source].epmd, nodes[target]))

    def cut(self, node: int) -> None:
        """Cut a node off from all others."""
        self._loop.call_soon_threadsafe(self._change, node, asyncio.Event.clear)

    def restore(self, node: int) -> None:
        """Restore the links of a node."""
        self._loop.call_soon_threadsafe(self._change, node, asyncio.Event.set)

    def close(self) -> None:
        """Stop the proxies."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def _change(self, node: int, change: Callable[[asyncio.Event], None]) -> None:
        for link, intact in self._intact.items():
            if node in {link.source, link.target}:
                change(intact)

    async def _listen(self, link: Link, mapper: int, target: NodePorts) -> None:
        intact = self._intact[link] = asyncio.Event()
        intact.set()

        async def to_node(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._keep(asyncio.current_task())
            await _forward(reader, writer, target.distribution, intact, _unchanged)

        async def to_mapper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._keep(asyncio.current_task())
            await _forward(reader, writer, target.epmd, intact, self._with_port_of_proxy)

        self._servers.append(await asyncio.start_server(to_node, link.address, self._port))
        self._servers.append(await asyncio.start_server(to_mapper, link.address, mapper))

    def _keep(self, task: "asyncio.Task[None] | None") -> None:
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _with_port_of_proxy(self, response: bytes) -> bytes:
        if not response.startswith(PORT_FOUND):
            return response
        return PORT_FOUND + self._port.to_bytes(2, "big") + response[len(PORT_FOUND) + 2 :]

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


def _unchanged(data: bytes) -> bytes:
    return data


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, intact: asyncio.Event, change: Change
) -> None:
    try:
        await intact.wait()
        other_reader, other_writer = await asyncio.open_connection(TARGET, port)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(
            _pump(reader, other_writer, intact, _unchanged), _pump(other_reader, writer, intact, change)
        )
    finally:
        other_writer.close()
        writer.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, intact: asyncio.Event, change: Change
) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK):
            await intact.wait()
            if writer.is_closing():
                return
            writer.write(change(chunk))
            await writer.drain()
        await intact.wait()
    writer.close()
