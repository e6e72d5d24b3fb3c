"""`python -m benchmarks.load`: a load generator in a process of its own, so that its cost can be told apart.

Open loop (`--rate`): requests leave at their times whatever the answers do, and latencies count from those times, so
that a slow server can not hide behind a client that waits for it. Closed loop (`--rate 0`): each connection asks again
as soon as it is answered. It posts `--body`, or gets the paths of a file one after the other (`--paths`). What it has
seen goes to standard output as JSON.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop
from typing_extensions import override

TICK = 0.001  # seconds between looks for requests whose time has come
PATIENCE = 20.0  # seconds for the last answers
ID = b'"id":"'
ID_LENGTH = 36


@dataclass
class Seen:
    """What came of the requests, an entry each; times are seconds since the epoch."""

    began: float = 0.0
    due: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Of the notifications that were accepted, in the order of `answered`."""
    refused: dict[str, int] = field(default_factory=dict)
    """Answers other than 200 and 201, by status."""
    unanswered: int = 0
    cpu: float = 0.0
    """Seconds of CPU that the generator itself has used."""


class Client:
    """Some connections to one server, and the requests that wait for a free one."""

    def __init__(self, requests: Iterator[bytes], *, closed_until: float | None) -> None:
        self.seen = Seen()
        self.requests = requests
        self._closed_until = closed_until
        # In turn: a server may close what is not used for long.
        self.free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self.open = 0

    def ask(self, due: float) -> None:
        """Send the request that is due now, or let it wait."""
        self.open += 1
        if self.free:
            self.free.popleft().ask(due)
        else:
            self._waiting.append(due)

    def next(self, connection: "Connection") -> None:
        """Give a connection that was answered its next request."""
        self.open -= 1
        now = time.time()
        if self._closed_until is not None and now < self._closed_until:
            self.open += 1
            connection.ask(now)
        elif self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self.free.append(connection)


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._due: float | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, due: float) -> None:
        """Send one request."""
        self._due = due
        if self._transport is None or self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(next(self._client.requests))

    @override
    def data_received(self, data: bytes) -> None:
        """Take one answer, however many parts it comes in."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length_at = head.lower().index(b"content-length:") + len(b"content-length:")
        if len(body) < int(head[length_at:].split(b"\r\n", 1)[0]):
            return
        self._received = b""
        seen = self._client.seen
        status = head[9:12]
        if status in (b"200", b"201") and self._due is not None:
            seen.due.append(self._due)
            seen.answered.append(time.time())
            if status == b"201":
                at = body.index(ID) + len(ID)
                seen.ids.append(body[at : at + ID_LENGTH].decode())
        else:
            seen.refused[status.decode()] = seen.refused.get(status.decode(), 0) + 1
        self._due = None
        self._client.next(self)

    @override
    def connection_lost(self, _: Exception | None) -> None:
        """Count what has no answer now; the connection is of no more use."""
        if self._due is not None:
            self._due = None
            self._client.open -= 1
            self._client.seen.unanswered += 1


async def generate(url: str, requests: Sequence[bytes], *, rate: float, seconds: float, connections: int) -> Seen:
    """Send `requests` in turn for `seconds` at `rate` a second, or as fast as `connections` are answered (0)."""
    parts = urlsplit(url)
    began = time.time()
    client = Client(cycle(requests), closed_until=None if rate else began + seconds)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        _, connection = await loop.create_connection(
            lambda: Connection(client), str(parts.hostname), int(parts.port or 80)
        )
        client.free.append(connection)
    used = _cpu()
    client.seen.began = began = time.time()
    if rate:
        sent, count = 0, int(rate * seconds)
        while sent < count:
            due_now = min(count, int((time.time() - began) * rate) + 1)
            for number in range(sent, due_now):
                client.ask(began + number / rate)
            sent = due_now
            await asyncio.sleep(TICK)
    else:
        for connection in list(client.free):
            client.free.remove(connection)
            client.open += 1
            connection.ask(began)
        await asyncio.sleep(seconds)
    deadline = time.time() + PATIENCE
    while client.open and time.time() < deadline:  # noqa: ASYNC110 - the end of a run, not worth an event
        await asyncio.sleep(TICK)
    client.seen.unanswered += client.open
    client.seen.cpu = _cpu() - used
    return client.seen


def _request(method: str, url: str, path: str, body: bytes = b"") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Generate, and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("url")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--body", help="JSON to post")
    what.add_argument("--paths", type=Path, help="file, a path to get in each line")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    options = parser.parse_args()
    if options.body is not None:
        requests = [_request("POST", options.url, urlsplit(options.url).path, options.body.encode())]
    else:
        requests = [_request("GET", options.url, path) for path in options.paths.read_text().split()]
    seen = uvloop.run(
        generate(options.url, requests, rate=options.rate, seconds=options.seconds, connections=options.connections)
    )
    json.dump(asdict(seen), sys.stdout)


if __name__ == "__main__":
    main()
