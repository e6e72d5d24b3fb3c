"""Clients of a worker's health port can neither use up its memory nor keep health checks out."""

import asyncio
from contextlib import suppress

import psutil
from notify_common.runtime.health_protocol import MAX_CONNECTIONS
from notify_local.ports import Ports
from support.processes import answers, running_service
from support.services import NOWHERE, TIMEOUT

MEGABYTE = 1_000_000
PART = b"".join(b"x%d: y\r\n" % number for number in range(10_000))


def resident(pid: int) -> int:
    """Return the bytes of memory that a process takes."""
    size: int = psutil.Process(pid).memory_info().rss
    return size


async def test_unfinished_head_is_refused() -> None:
    port = Ports().free(18_850)
    with running_service("webhook_sender", NOWHERE, HEALTH_PORT=str(port)) as process:
        await answers(f"http://127.0.0.1:{port}/livez", 200)
        before = resident(process.pid)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        async with asyncio.timeout(TIMEOUT):
            with suppress(ConnectionError):
                for _ in range(20 * MEGABYTE // len(PART)):
                    writer.write(PART)
                    await writer.drain()
                await reader.read()
        writer.close()
        assert resident(process.pid) - before < 10 * MEGABYTE
        await answers(f"http://127.0.0.1:{port}/livez", 200)


async def test_endless_body_is_refused() -> None:
    port = Ports().free(18_850)
    with running_service("webhook_sender", NOWHERE, HEALTH_PORT=str(port)):
        await answers(f"http://127.0.0.1:{port}/livez", 200)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        async with asyncio.timeout(TIMEOUT):
            with suppress(ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                while not reader.at_eof():
                    writer.write(b"1\r\nx\r\n" * 100)
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()
        await answers(f"http://127.0.0.1:{port}/livez", 200)


async def test_connection_may_serve_any_number_of_checks() -> None:
    port = Ports().free(18_850)
    with running_service("webhook_sender", NOWHERE, HEALTH_PORT=str(port)):
        await answers(f"http://127.0.0.1:{port}/livez", 200)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nPadding: %b\r\n\r\n" % (b"x" * 15_000))
            async with asyncio.timeout(TIMEOUT):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"}")
        writer.close()


async def test_idle_connections_keep_no_check_out() -> None:
    port = Ports().free(18_850)
    with running_service("webhook_sender", NOWHERE, HEALTH_PORT=str(port)):
        await answers(f"http://127.0.0.1:{port}/livez", 200)
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS + 1)]
        async with asyncio.timeout(TIMEOUT):
            assert not await idle[0][0].read()
        await answers(f"http://127.0.0.1:{port}/livez", 200)
        assert not idle[-1][0].at_eof()
        for _, writer in idle:
            writer.close()
