"""The processes of a contender, with a server in place of them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.contenders.contender import Contender, Program
from benchmarks.contenders.ports import free_port
from benchmarks.running import STARTED, Running
from benchmarks.servers import Servers

WORKERS = 2
# A server with two workers: the first answers at once, and the second starts during the third request.
SERVER = f"""
import http.server, sys

requests = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global requests
        requests += 1
        if requests == 3:
            print({STARTED.decode()!r}, flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print({STARTED.decode()!r}, flush=True)
server.serve_forever()
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    contender = Contender(
        key="fake", name="fake", programs=lambda _: [], environment=lambda *_: {}, prepare=lambda _: None,
        documentation=[], switches="", guarantees="",
    )  # fmt: skip
    running = Running(contender, Servers("", "", "", {}, tmp_path), 0.0, tmp_path)
    yield running
    running.kill()


def server() -> Program:
    port = free_port()
    return Program("api", [sys.executable, "-c", SERVER, str(port)], ready=f"http://127.0.0.1:{port}/", workers=WORKERS)


def test_a_server_is_ready_once_all_of_its_workers_have_started(running: Running, tmp_path: Path) -> None:
    log = tmp_path / "fake.api.log"
    for starts in (1, 2):  # the log of an earlier start must not count
        running.launch(server())
        assert log.read_bytes().count(STARTED) == starts * WORKERS
        running.kill()
