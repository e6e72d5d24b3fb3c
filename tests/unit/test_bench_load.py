"""The load generator, against a server that answers on command."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.load import LoadResults, Request, generate

ID = "01980000-0000-7000-8000-000000000000"
POST = Request("POST", "/api/notifications", {"Authorization": "Bearer key"}, json.dumps({"message": "ä"}))


@asynccontextmanager
async def server(status: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answer every request with `status`; yield the URL and the requests."""
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"id": ID}, separators=(",", ":")).encode()
        while head := await reader.read(65_536):
            requests.append(head)
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/api/notifications", requests
    listening.close()


async def load(url: str, rate: float) -> LoadResults:
    return await generate(url, [POST], rate=rate, seconds=0.2, connections=4, seed=1)


async def test_a_request_has_its_headers_and_the_length_of_its_body_in_bytes() -> None:
    head, _, body = POST.encoded("host:80").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/notifications HTTP/1.1\r\nHost: host:80\r\n")
    assert b"\r\nAuthorization: Bearer key" in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head


async def test_an_open_loop_sends_all_requests_that_are_due_and_records_their_times() -> None:
    async with server("201 Created") as (url, requests):
        results = await load(url, 200)
    assert len(requests) == len(results.ids) == len(results.due) == len(results.answered)
    assert set(results.ids) == {ID}
    assert results.due == sorted(results.due)
    assert all(due >= results.began for due in results.due)
    assert results.unanswered == 0


async def test_other_responses_are_counted_by_status() -> None:
    async with server("503 Service Unavailable") as (url, requests):
        results = await load(url, 100)
    assert results.refused == {"503": len(requests)}
    assert not results.ids


async def test_a_closed_loop_keeps_every_connection_busy() -> None:
    async with server("201 Created") as (url, requests):
        results = await load(url, 0)
    assert len(results.ids) == len(requests) > 4
