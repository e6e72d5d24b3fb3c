"""Test the containers from start to shutdown: delivery, metrics, scaling, faults and changed settings."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import yaml
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_local.stack import SENDERS, SERVICES
from support.compose import NAME, Compose, docker, inspect
from support.debian import unpacked
from support.processes import all_final
from support.servers import PROJECT
from support.services import eventually

QUEUES = {f"{channel}_sender": topology.delivery_queue_name(channel) for channel in Channel}
MANY = 2_000
REQUESTS_AT_ONCE = 50
OBSERVABILITY = PROJECT / "deploy/observability"
SERVICES_IN_COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]

pytestmark = pytest.mark.timeout(600)


async def post(client: httpx.AsyncClient, count: int) -> list[str]:
    """Post `count` notifications to all channels; each must be accepted on the first attempt."""
    slots = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def post_one(user_id: int) -> str:
        body = {"user_id": user_id, "message": "Your code: 11111", "channels": list(Channel)}
        async with slots:
            response = await client.post("/api/notifications", json=body)
        assert response.status_code == 201, response.text
        notification_id: str = response.json()["id"]
        return notification_id

    return await asyncio.gather(*(post_one(number) for number in range(1, count + 1)))


def consumers(compose: Compose, queue: str) -> list[str]:
    """Return the names of the connections that consume from the queue, as shown in the management UI."""
    with compose.management() as management:
        all_consumers = management.get("/api/consumers/%2F").raise_for_status().json()
        names = {each["name"]: each["user_provided_name"] for each in management.get("/api/connections").json()}
    details = [each["channel_details"] for each in all_consumers if each["queue"]["name"] == queue]
    # The details are an empty list for a moment, if the channel is new.
    return [names.get(each["connection_name"], "unknown yet") if each else "unknown yet" for each in details]


def received_by_channel(compose: Compose, queue: str) -> dict[str, int]:
    """Return how many messages each consumer of the queue has received, by the name of its AMQP channel."""
    with compose.management() as management:
        all_consumers = management.get("/api/consumers/%2F").raise_for_status().json()
        known = {each["name"]: each for each in management.get("/api/channels").json()}
    details = [each["channel_details"] for each in all_consumers if each["queue"]["name"] == queue]
    return {
        name: known[name].get("message_stats", {}).get("ack", 0) + known[name]["messages_unacknowledged"]
        for name in (each["name"] for each in details if each)  # as above
        if name in known
    }


async def each_consumes(compose: Compose, service: str, queue: str, count: int) -> None:
    """Wait until the service's `count` containers, and no others, consume from the queue."""
    containers = compose.containers(service)
    assert len(containers) == count
    names = sorted(f"{service}@{container[:12]}" for container in containers)

    async def all_consume() -> bool:
        # The management API takes a few seconds to show a new connection.
        return sorted(await asyncio.to_thread(consumers, compose, queue)) == names

    await eventually(all_consume, f"{names} consume from {queue}")


async def test_notification_is_delivered_and_the_management_ui_shows_all_queues(compose: Compose) -> None:
    async with compose.gateway() as client:
        [notification] = await all_final(client, await post(client, 1))
    assert {delivery["channel"] for delivery in notification["deliveries"]} == set(Channel)
    with compose.management() as management:
        queues = {queue["name"] for queue in management.get("/api/queues").raise_for_status().json()}
    assert {*QUEUES.values(), "notifications.results", "notifications.dead"} <= queues


async def test_connections_are_named_after_their_containers(compose: Compose) -> None:
    for sender, queue in QUEUES.items():
        await each_consumes(compose, sender, queue, 1)
    for results in ("notifications.results", *map("notifications.results.{}".format, Channel)):
        await each_consumes(compose, "status_writer", results, 1)


QUERY_PROMETHEUS = """
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9090/api/v1/" + sys.argv[1]).read().decode())
"""


async def test_prometheus_scrapes_every_container_and_evaluates_every_rule(compose: Compose, tmp_path: Path) -> None:
    """Run Debian's Prometheus in a plain Python container instead of using Prometheus's own image."""
    program = unpacked("prometheus", folder=tmp_path / "prometheus", with_libraries=False) / "usr/bin/prometheus"
    mounts = {program: "/usr/bin/prometheus"}
    mounts |= {OBSERVABILITY / name: f"/etc/prometheus/{name}" for name in ("prometheus.yml", "rules.yml")}
    volumes = [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
    options = ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/data"]
    await compose.up("--scale", "telegram_sender=2")
    # The network of the observers does not exist, because their profile is not active.
    networks = [f"{NAME}_{each}" for each in SERVICES_IN_COMPOSE["prometheus"]["networks"] if each != "observers"]
    container = docker(
        "create", f"--network={networks[0]}", *volumes, "python:3.13-slim", "prometheus", *options
    ).strip()

    def get(path: str) -> Any:
        return json.loads(docker("exec", container, "python", "-c", QUERY_PROMETHEUS, path))["data"]

    def query(expression: str) -> dict[str, float]:
        result = get(f"query?query={quote(expression)}")["result"]
        return {" ".join(each["metric"].values()): float(each["value"][1]) for each in result}

    async def all_are_up() -> bool:
        up = await asyncio.to_thread(query, "sum by (job) (up)")
        return up == {**dict.fromkeys([*SERVICES, "rabbitmq"], 1), "telegram_sender": 2}

    async def rules_are_evaluated() -> bool:
        groups = (await asyncio.to_thread(get, "rules"))["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}

    try:
        for network in networks[1:]:
            docker("network", "connect", network, container)
        docker("start", container)
        await eventually(all_are_up, "Prometheus scrapes every container", timeout=90)
        await eventually(rules_are_evaluated, "all rules are evaluated", timeout=60)
        assert query("sum by (queue) (notify_consumer_up)")["notifications.telegram"] == 2
        assert "notifications.telegram" in query("sum by (queue) (rabbitmq_queue_messages_ready)")
    finally:
        docker("rm", "--force", "--volumes", container)
    await compose.up()


async def test_nothing_is_lost_when_a_sender_is_killed_and_the_broker_restarts(compose: Compose) -> None:
    others = {service: compose.containers(service) for service in ("gateway", "status_writer", "rabbitmq", "postgres")}
    await compose.up("--scale", "telegram_sender=4", "--scale", "email_sender=2")
    assert {service: compose.containers(service) for service in others} == others
    await each_consumes(compose, "telegram_sender", "notifications.telegram", 4)
    await each_consumes(compose, "email_sender", "notifications.email", 2)
    before = received_by_channel(compose, "notifications.telegram")
    async with compose.gateway() as client:
        ids = await post(client, MANY // 2)

        async def all_have_received() -> bool:
            now = await asyncio.to_thread(received_by_channel, compose, "notifications.telegram")
            return len(now) == 4 and all(count > before.get(channel, 0) for channel, count in now.items())

        await eventually(all_have_received, "all four senders have received messages")
        # Make attempts slow, so that the killed sender has messages in flight.
        compose.set(TELEGRAM_SLEEP="5")
        await compose.up("--scale", "telegram_sender=4", "--scale", "email_sender=2")
        victim, [broker] = compose.containers("telegram_sender")[0], compose.containers("rabbitmq")
        ids += await post(client, MANY // 2)
        await asyncio.to_thread(docker, "kill", "--signal", "KILL", victim)
        await asyncio.to_thread(docker, "restart", broker)
        notifications = await all_final(client, ids)
    assert {notification["id"] for notification in notifications} == set(ids)
    assert len(set(ids)) == MANY


async def test_nothing_is_lost_when_settings_and_scale_change_under_load(compose: Compose) -> None:
    stop = asyncio.Event()
    async with compose.gateway() as client:

        async def keep_posting() -> list[str]:
            ids: list[str] = []
            while not stop.is_set():
                ids += await post(client, REQUESTS_AT_ONCE)
            return ids

        posting = asyncio.create_task(keep_posting())
        compose.set(TELEGRAM_SLEEP="0.05", ERROR_PROBABILITY="0")
        await compose.up()
        stop.set()
        ids = await posting
        notifications = await all_final(client, ids)
    assert {notification["id"] for notification in notifications} == set(ids)
    assert len(ids) > REQUESTS_AT_ONCE
    for service in SENDERS:
        [container] = compose.containers(service)
        assert "ERROR_PROBABILITY=0" in inspect(container)["Config"]["Env"]
    for sender, queue in QUEUES.items():
        await each_consumes(compose, sender, queue, 1)


async def test_sender_is_unhealthy_while_its_queue_is_missing(compose: Compose) -> None:
    [sender] = compose.containers("telegram_sender")
    with compose.management() as management:
        management.delete("/api/queues/%2F/notifications.telegram").raise_for_status()

    async def is_unhealthy() -> bool:
        health = (await asyncio.to_thread(inspect, sender))["State"]["Health"]
        return health["Status"] == "unhealthy" and "notifications.telegram: " in health["Log"][-1]["Output"]

    await eventually(is_unhealthy, "the container is unhealthy", timeout=60)
    # On a restart, RabbitMQ declares the missing queue again, and the sender starts to consume from it.
    compose.run("restart", "rabbitmq")
    compose.run("restart", "telegram_sender")

    async def are_healthy() -> bool:
        names = [name for service in SERVICES for name in compose.containers(service)]
        health = [(await asyncio.to_thread(inspect, name))["State"]["Health"] for name in names]
        return all(each["Status"] == "healthy" and each["FailingStreak"] == 0 for each in health)

    # `up --wait` fails at once if a container is marked as unhealthy, as all consumers are during the restart. It takes
    # several failed checks to mark a container, so its last check must have succeeded as well.
    await eventually(are_healthy, "all services are healthy", timeout=90)
    await compose.up()
    async with compose.gateway() as client:
        await all_final(client, await post(client, 1))


def test_every_service_stops_gracefully(compose: Compose) -> None:
    containers = {service: compose.containers(service)[0] for service in SERVICES}
    compose.run("stop", *SERVICES)
    assert {
        service: inspect(container)["State"]["ExitCode"] for service, container in containers.items()
    } == dict.fromkeys(SERVICES, 0)
