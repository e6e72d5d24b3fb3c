"""The event loop accepts several connections in each turn."""

import asyncio
import socket
from contextlib import ExitStack

from notify_common.runtime.process import ACCEPTED_AT_ONCE, listening_sockets
from typing_extensions import override

CONNECTIONS = 10 * ACCEPTED_AT_ONCE


async def test_many_connections_are_accepted_in_each_turn_of_the_event_loop() -> None:
    accepted = turns = 0

    class Counting(asyncio.Protocol):
        @override
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal accepted
            accepted += 1
            transport.close()

    loop = asyncio.get_running_loop()
    sockets = listening_sockets([("127.0.0.1", 0)])
    servers = [await loop.create_server(Counting, sock=each, backlog=CONNECTIONS) for each in sockets]
    try:
        with ExitStack() as clients:
            for _ in range(CONNECTIONS):
                clients.enter_context(socket.create_connection(sockets[0].getsockname()))
            while accepted < CONNECTIONS:
                await asyncio.sleep(0)
                turns += 1
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()
    assert turns <= 2 * CONNECTIONS / ACCEPTED_AT_ONCE
