"""Restart gateways in turn behind the proxy of deploy/edge, under load: no request fails."""

import asyncio
import signal
import subprocess
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_local.ports import Ports
from support.edge import Edge, haproxy_for_tests, running_edge
from support.event_stream import BODY, Reader
from support.fakes import FakeProvider
from support.processes import STOP_TIMEOUT, answers, running_service
from support.services import eventually, running_sender, running_status_writer

DELAY = "5"  # seconds, the default


class Load:
    """Clients that post one notification after another, some of them over a new connection each time."""

    def __init__(self, edge: Edge) -> None:
        self.outcomes = Counter[str]()
        self.accepted: set[str] = set()
        self._edge = edge
        self._stop = asyncio.Event()

    async def run(self) -> None:
        async with self._edge.client() as client, asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(self._post_kept_alive(client))
            for _ in range(2):
                group.create_task(self._post_fresh())

    def stop(self) -> None:
        self._stop.set()

    async def grows(self) -> None:
        """Wait until a hundred more requests have been answered."""
        goal = self.outcomes.total() + 100

        async def reached() -> bool:
            return self.outcomes.total() >= goal

        await eventually(reached, "the clients get responses")

    async def _post_kept_alive(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            await self._post(client)

    async def _post_fresh(self) -> None:
        context = self._edge.context()
        while not self._stop.is_set():
            async with self._edge.client(context) as client:
                await self._post(client)

    async def _post(self, client: httpx.AsyncClient) -> None:
        try:
            response = await client.post("/api/notifications", json=BODY)
        except httpx.TransportError as error:
            self.outcomes[repr(error)] += 1
            return
        self.outcomes[str(response.status_code)] += 1
        if response.status_code == httpx.codes.CREATED:
            self.accepted.add(response.json()["id"])


class Follower:
    """A client that follows the events, and resumes after the end of a stream as `EventSource` does."""

    def __init__(self, edge: Edge) -> None:
        self.seen: set[str] = set()
        self.refused: list[int] = []
        self.streams = 0
        self._edge = edge

    async def run(self) -> None:
        last_id: str | None = None
        async with self._edge.client() as client:
            while True:
                headers = {} if last_id is None else {"Last-Event-ID": last_id}
                async with client.stream("GET", "/api/events", headers=headers) as response:
                    if response.status_code != httpx.codes.OK:
                        self.refused.append(response.status_code)
                        return
                    self.streams += 1
                    reader = Reader(response)
                    while (event := await reader.next()) is not None:
                        if event["event"] == "status":
                            self.seen.add(event["data"]["notification_id"])
                    last_id = reader.last_id


@pytest.mark.timeout(300)
async def test_gateways_are_restarted_in_turn_without_a_failed_request(
    rabbit: RabbitSettings, postgres: PostgresSettings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    haproxy = haproxy_for_tests(tmp_path_factory.mktemp("haproxy"))
    ports = Ports()
    urls = [httpx.URL(f"http://127.0.0.1:{ports.free(18_900)}") for _ in range(2)]
    with ExitStack() as processes:

        def start(url: httpx.URL) -> subprocess.Popen[str]:
            settings = {"APP_PORT": str(url.port), "SHUTDOWN_DELAY": DELAY}
            return processes.enter_context(running_service("gateway", rabbit, postgres, **settings))

        gateways = {url: start(url) for url in urls}
        for url in urls:
            await answers(f"{url}/readyz", 200)
        async with (
            running_sender(rabbit, FakeProvider()),
            running_status_writer(rabbit, postgres),
            running_edge(haproxy, tmp_path, *urls) as edge,
        ):
            load, follower = Load(edge), Follower(edge)
            loading, following = asyncio.create_task(load.run()), asyncio.create_task(follower.run())
            await load.grows()
            for url in urls:
                gateways[url].send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(gateways[url].wait, STOP_TIMEOUT) == 0
                await edge.notices(url, ready=False)
                await load.grows()
                gateways[url] = start(url)
                await edge.notices(url, ready=True)
                await load.grows()
            load.stop()
            await loading

            async def all_seen() -> bool:
                return following.done() or load.accepted <= follower.seen

            await eventually(all_seen, "the subscriber has seen every notification")
            if following.done():
                following.result()
            following.cancel()
    assert set(load.outcomes) == {"201"}
    assert follower.refused == []
    assert load.accepted <= follower.seen
    assert follower.streams > 1
