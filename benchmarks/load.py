"""`python -m benchmarks.load`: a load generator, run as a separate process so that its CPU can be measured separately.

With `--rate` the loop is open: requests arrive as a Poisson process, as those of independent clients do, and are sent
on schedule even if responses are late. Latencies count from the scheduled times, so that a slow server cannot slow its
own load down. With `--rate 0` the loop is closed: each connection sends its next request as soon as it has a response.
The requests are read from a file and sent in turn. The results are written to standard output as JSON.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import uvloop
from typing_extensions import override

from benchmarks.arithmetic import poisson_arrivals

TICK = 0.001  # seconds between checks for requests that are due
PATIENCE = 20.0  # seconds to wait for the last responses
ID = b'"id":"'
ID_LENGTH = 36


class Request(NamedTuple):
    """An HTTP request."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: str = ""

    def encoded(self, host: str) -> bytes:
        """Return the request as it is sent."""
        body = self.body.encode()
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
        lines += ["Content-Type: application/json"] if body else []
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class LoadResults:
    """The results of one load; times are in seconds since the epoch."""

    began: float = 0.0
    due: list[float] = field(default_factory=list)
    """The scheduled time of each successful request."""
    answered: list[float] = field(default_factory=list)
    """The time of each 200 or 201, in the same order."""
    ids: list[str] = field(default_factory=list)
    """The ids of the accepted notifications, in the same order."""
    refused: dict[str, int] = field(default_factory=dict)
    """The number of other responses by status code."""
    unanswered: int = 0
    cpu: float = 0.0
    """The seconds of CPU that the load generator used."""


class Client:
    """A pool of connections to one server, with a queue of requests that are waiting for a free one."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.results = LoadResults()
        self.requests = requests
        self.closed_until: float | None = None
        """The end of a closed loop; None in an open loop."""
        # Use the connections in turn, because a server may close one that stays idle for long.
        self.free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self.open = 0

    def send(self, due: float) -> None:
        """Send the request that is due now, or queue it until a connection is free."""
        self.open += 1
        if self.free:
            self.free.popleft().send(due)
        else:
            self._waiting.append(due)

    def next(self, connection: "Connection") -> None:
        """Reuse a connection that has received its response."""
        self.open -= 1
        now = time.time()
        if self.closed_until is not None and now < self.closed_until:
            self.open += 1
            connection.send(now)
        elif self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self.free.append(connection)


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in flight."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._due: float | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def send(self, due: float) -> None:
        """Send one request."""
        self._due = due
        if self._transport is None or self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(next(self._client.requests))

    @override
    def data_received(self, data: bytes) -> None:
        """Collect the parts of a response and record it once it is complete."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length_at = head.lower().index(b"content-length:") + len(b"content-length:")
        if len(body) < int(head[length_at:].split(b"\r\n", 1)[0]):
            return
        self._received = b""
        results = self._client.results
        status = head[9:12]
        if status in (b"200", b"201") and self._due is not None:
            results.due.append(self._due)
            results.answered.append(time.time())
            if status == b"201":
                at = body.index(ID) + len(ID)
                results.ids.append(body[at : at + ID_LENGTH].decode())
        else:
            results.refused[status.decode()] = results.refused.get(status.decode(), 0) + 1
        self._due = None
        self._client.next(self)

    @override
    def connection_lost(self, _: Exception | None) -> None:
        """Count the request in flight as unanswered; the connection is not replaced."""
        if self._due is not None:
            self._due = None
            self._client.open -= 1
            self._client.results.unanswered += 1


async def generate(
    url: str, requests: Sequence[Request], *, rate: float, seconds: float, connections: int, seed: int
) -> LoadResults:
    """Send `requests` in turn for `seconds`: `rate` a second, or as fast as the server responds if `rate` is 0."""
    parts = urlsplit(url)
    encoded = [request.encoded(parts.netloc) for request in requests]
    arrivals = poisson_arrivals(rate, seconds, seed) if rate else []
    client = Client(cycle(encoded))
    loop = asyncio.get_running_loop()
    transports = []
    for _ in range(connections):
        transport, connection = await loop.create_connection(
            lambda: Connection(client), str(parts.hostname), int(parts.port or 80)
        )
        transports.append(transport)
        client.free.append(connection)
    used = _cpu()
    client.results.began = began = time.time()
    if rate:
        await _send_on_schedule(client, began, arrivals)
    else:
        client.closed_until = began + seconds
        for connection in list(client.free):
            client.free.remove(connection)
            client.open += 1
            connection.send(began)
        await asyncio.sleep(seconds)
    deadline = time.time() + PATIENCE
    while client.open and time.time() < deadline:  # noqa: ASYNC110 - runs once, so an event is not worth it
        await asyncio.sleep(TICK)
    client.results.unanswered += client.open
    client.results.cpu = _cpu() - used
    for transport in transports:
        transport.close()
    return client.results


async def _send_on_schedule(client: Client, began: float, arrivals: Sequence[float]) -> None:
    sent = 0
    while sent < len(arrivals):
        now = time.time() - began
        while sent < len(arrivals) and arrivals[sent] <= now:
            client.send(began + arrivals[sent])
            sent += 1
        await asyncio.sleep(TICK)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Generate the load and print the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("url", help="the server")
    parser.add_argument("--requests", type=Path, required=True, help="file with a JSON array for each request")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1, help="of the arrival times (default: %(default)s)")
    options = parser.parse_args()
    requests = [Request(*json.loads(line)) for line in options.requests.read_text().splitlines()]
    results = uvloop.run(
        generate(
            options.url,
            requests,
            rate=options.rate,
            seconds=options.seconds,
            connections=options.connections,
            seed=options.seed,
        )
    )
    json.dump(asdict(results), sys.stdout)


if __name__ == "__main__":
    main()
