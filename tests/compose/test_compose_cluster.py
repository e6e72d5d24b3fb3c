"""Test docker-compose.cluster.yml: any one container may be lost, and nothing that was accepted is."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from notify_common.contracts.channels import Channel
from support.compose import LABEL, Compose, docker
from support.processes import all_final
from support.services import eventually

MEMBERS = [f"{server}-{number}" for server in ("etcd", "postgres", "rabbitmq") for number in (1, 2, 3)]
SERVICES = ["gateway", "maintenance", "status_writer", *(f"{channel}_sender" for channel in Channel)]
PACE = 0.05  # seconds between two posts
OUTAGE = 5.0  # seconds that a killed container stays away
LIMIT = 120.0  # seconds until requests are accepted again; Patroni promotes a standby after 20

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    compose = Compose(tmp_path_factory.mktemp("cluster") / "env", "docker-compose.cluster.yml")
    compose.run("down", "--volumes")  # remove anything that an interrupted run has left behind
    try:
        asyncio.run(compose.up("--build"))
        yield compose
    finally:
        compose.run("down", "--volumes")
    assert docker("volume", "ls", "--quiet", "--filter", LABEL) == ""


class Load:
    """Posts notifications, and repeats each until it gets a 201."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.accepted: list[str] = []

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            self.accepted.append(await self._post(number))
            await asyncio.sleep(PACE)

    async def _post(self, number: int) -> str:
        body = {"user_id": number, "message": "Your code: 11111", "channels": list(Channel)}
        while True:
            with suppress(httpx.TransportError):
                headers = {"Idempotency-Key": f"{number}"}
                response = await self._client.post("/api/notifications", json=body, headers=headers)
                if response.status_code == httpx.codes.CREATED:
                    return str(response.json()["id"])
                assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
            await asyncio.sleep(PACE)

    async def goes_on(self) -> None:
        """Return once a request that began from now on is accepted."""
        before = len(self.accepted) + 1  # one may be in progress

        async def accepted() -> bool:
            return len(self.accepted) > before

        await eventually(accepted, "requests are accepted", timeout=LIMIT)


@asynccontextmanager
async def load(client: httpx.AsyncClient) -> AsyncIterator[Load]:
    load = Load(client)
    posting = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        posting.cancel()
        await asyncio.wait({posting})
    if not posting.cancelled():
        posting.result()


def primary(compose: Compose) -> str:
    """Return the service of the PostgreSQL primary."""
    listed = compose.run("exec", "-T", "postgres-1", "/etc/notify/entrypoint.sh", "patronictl", "list", "-f", "json")
    [leader] = [member["Member"] for member in json.loads(listed) if member["Role"] == "Leader"]
    return str(leader)


def queue_members(compose: Compose) -> set[int]:
    """Return how many members the queues have."""
    listed = compose.run(
        "exec", "-T", "rabbitmq-1", "rabbitmqctl", "-q", "list_queues", "members", "--formatter", "json"
    )
    return {len(queue["members"]) for queue in json.loads(listed)}


async def test_every_queue_has_a_member_on_each_node(cluster: Compose) -> None:
    async def is_complete() -> bool:
        return await asyncio.to_thread(queue_members, cluster) == {3}

    await eventually(is_complete, "every queue has three members", timeout=LIMIT)


async def test_each_container_is_killed_and_nothing_is_lost(cluster: Compose) -> None:
    async with cluster.gateway() as client:
        async with load(client) as posts:
            await posts.goes_on()
            # The primary comes first; it is another member afterwards.
            for service in (primary(cluster), *MEMBERS, *SERVICES):
                print(f"kill {service}; {len(posts.accepted)} accepted", flush=True)
                await asyncio.to_thread(cluster.run, "kill", service)
                await asyncio.sleep(OUTAGE)
                if service != "gateway":
                    await posts.goes_on()
                await cluster.up("--no-recreate", service)
                await posts.goes_on()
            accepted = posts.accepted
        finals = await all_final(client, accepted)
    assert {each["id"] for each in finals} == set(accepted)
    assert len(set(accepted)) == len(accepted)
