"""Test the privileges and secrets of each container, the containers that it reaches, and its rights in RabbitMQ."""

import json
import re
from pathlib import Path

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_local.env_file import DRAWN
from notify_local.stack import SENDERS, SERVICES
from support.compose import Compose, docker, inspect

QUEUES = {f"{channel}_sender": topology.delivery_queue_name(channel) for channel in Channel}
SERVERS = ("postgres", "rabbitmq")
TRY_RIGHTS = Path(__file__).with_name("try_rights.py").read_text()
TRY_ADDRESSES = Path(__file__).with_name("try_addresses.py").read_text()

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("service", SERVICES)
def test_service_runs_with_minimal_privileges(compose: Compose, service: str) -> None:
    [container] = compose.containers(service)
    details = inspect(container)
    assert details["Config"]["User"] == "10001:10001"
    assert details["HostConfig"]["ReadonlyRootfs"]
    assert details["HostConfig"]["CapDrop"] == ["ALL"]
    assert details["Config"]["Labels"]["org.opencontainers.image.version"]
    assert details["Config"]["Labels"]["org.opencontainers.image.revision"]
    # The service must be process 1, because Docker sends SIGTERM only to that process.
    assert compose.run("exec", "-T", service, "cat", "/proc/1/cmdline").split("\0")[1:3] == ["-m", f"notify_{service}"]
    unwanted = "for name in gcc cc make; do command -v $name; done; ls -d /root/.cache /var/cache/apt/*.bin"
    # The command runs as root, which can see every file. Errors are hidden, because `ls` prints one for each missing
    # file.
    assert docker("run", "--rm", "--user", "0", details["Image"], "sh", "-c", f"({unwanted}) 2>/dev/null; true") == ""


@pytest.mark.parametrize("service", SENDERS)
def test_sender_image_contains_neither_database_driver_nor_fastapi(compose: Compose, service: str) -> None:
    find = "import importlib.util as u; print([m for m in {} if u.find_spec(m)])"
    modules = ["sqlalchemy", "asyncpg", "fastapi", "notify_database", "aio_pika"]
    assert compose.run("exec", "-T", service, "python", "-c", find.format(modules)).strip() == "['aio_pika']"


EXAMPLE_SECRET = "change-me-0123456789abcdef0123456789abcdef012345"
CHECKED = {
    "rabbitmq": ["RABBITMQ_ADMIN_PASSWORD", "RABBITMQ_GATEWAY_PASSWORD"],
    "migrate": [
        "POSTGRES_PASSWORD",
        "POSTGRES_ADMIN_PASSWORD",
        "POSTGRES_GATEWAY_PASSWORD",
        "POSTGRES_STATUS_WRITER_PASSWORD",
    ],
    "maintenance": ["POSTGRES_PASSWORD"],
    "gateway": ["POSTGRES_PASSWORD", "RABBITMQ_PASSWORD", "BOOTSTRAP_API_KEY"],
    "status_writer": ["POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"],
    **{sender: ["RABBITMQ_PASSWORD"] for sender in SENDERS},
}


@pytest.mark.parametrize("service", CHECKED)
def test_no_container_starts_with_example_secrets(compose: Compose, service: str) -> None:
    variables = CHECKED[service]
    examples = [f"--env={variable}={EXAMPLE_SECRET}" for variable in variables]
    examples += [f"--env={variable}_FILE=" for variable in variables]  # an empty value counts as not set
    with pytest.raises(AssertionError) as refused:
        compose.run("run", "--rm", "--no-deps", *examples, service)
    [named] = re.findall(r"^ *([A-Z_, ]+): must not contain change-me.*make env", str(refused.value), re.MULTILINE)
    assert set(named.split(", ")) == set(variables)


SHARED = ("notifications.results", "notifications.dead")
OF_CHANNELS = [f"{shared}.{channel}" for shared in SHARED for channel in Channel]


def of_channel(channel: str) -> list[str]:
    return [f"{shared}.{channel}" for shared in SHARED]


PERMISSIONS: dict[str, dict[str, list[str]]] = {
    "gateway": {"publish": ["notifications"]},
    **{
        sender: {"read": [queue], "publish": [f"{queue}.retry", *of_channel(sender.removesuffix("_sender"))]}
        for sender, queue in QUEUES.items()
    },
    "status_writer": {
        "read": ["notifications.results", *OF_CHANNELS[: len(Channel)]],
        "publish": ["notifications.dead", *OF_CHANNELS[len(Channel) :]],
    },
}


@pytest.mark.parametrize("service", SERVICES)
def test_rabbitmq_refuses_operations_that_a_role_does_not_need(compose: Compose, service: str) -> None:
    permissions = PERMISSIONS[service]
    read = [*QUEUES.values(), *SHARED, *OF_CHANNELS]
    publish = ["", "notifications", *SHARED, *OF_CHANNELS, *(f"{queue}.retry" for queue in QUEUES.values())]
    refused = [
        *(["read", name] for name in read if name not in permissions.get("read", [])),
        *(["publish", name] for name in publish if name not in permissions.get("publish", [])),
        *(["delete", queue] for queue in QUEUES.values()),
        ["bind", QUEUES["telegram_sender"]],
        ["declare-exchange", "foreign"], ["declare-exchange", "notifications.mine"],
        ["declare-queue", "foreign"], ["declare-queue", "notifications.mine"],
    ]  # fmt: skip
    output = compose.run("exec", "-T", service, "python", "-", json.dumps(refused), script=TRY_RIGHTS)
    assert json.loads(output) == refused


@pytest.mark.parametrize("server", SERVERS)
def test_server_runs_without_root_and_capabilities(compose: Compose, server: str) -> None:
    status = compose.run("exec", "-T", server, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "0" not in fields["Uid"].split()
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


def test_docker_inspect_shows_no_secret(compose: Compose) -> None:
    shown = json.dumps([inspect(container) for container in compose.all_containers()])
    shown += compose.run("config") + compose.run("config", "--format", "json")
    assert "/run/secrets/postgres_password" in shown
    assert [name for name in DRAWN if compose.secret(name) in shown] == []


@pytest.mark.parametrize("service", [*SERVICES, "rabbitmq"])
def test_no_process_has_a_secret_in_its_environment_or_arguments(compose: Compose, service: str) -> None:
    """Among the processes are the shells that start the server or run the check of its health."""
    # A process may end before it is read, such as a check of the health, but process 1 does not.
    read = "cat /proc/1/environ /proc/1/cmdline && (cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; true)"
    shown = compose.run("exec", "-T", service, "sh", "-c", read)
    assert "PATH=" in shown
    assert [name for name in DRAWN if compose.secret(name) in shown] == []


@pytest.mark.parametrize("service", SERVICES)
def test_container_cannot_read_the_secrets_of_others(compose: Compose, service: str) -> None:
    mounted = set(compose.run("exec", "-T", service, "ls", "/run/secrets").split())
    assert not {name for name in mounted if name.startswith("rabbitmq_")} - {f"rabbitmq_{service}_password"}
    assert not {name for name in mounted if name.startswith("postgres_")} - {f"postgres_{service}_password"}
    assert ("bootstrap_api_key" in mounted) == (service == "gateway")


PORTS = {
    "postgres": [5432],
    "rabbitmq": [5672, 15672, 15692],
    "gateway": [8080, 8085],
    "telegram_sender": [8081],
    "email_sender": [8082],
    "status_writer": [8083],
    "webhook_sender": [8084],
}
REACHED = {
    "gateway": {"postgres", "rabbitmq", "status_writer"},
    "status_writer": {"postgres", "rabbitmq", "gateway"},
    **{sender: {"rabbitmq"} for sender in SENDERS},
}


def addresses(compose: Compose, service: str) -> list[str]:
    """Return the name and the addresses of a service, one on each of its networks."""
    [container] = compose.containers(service)
    networks = inspect(container)["NetworkSettings"]["Networks"].values()
    return [service, *(network["IPAddress"] for network in networks)]


@pytest.mark.parametrize("service", SERVICES)
def test_container_reaches_only_those_it_talks_to(compose: Compose, service: str) -> None:
    """A sender reaches neither the database nor any other service, not even its health port."""
    tried = [[name, each, port] for name in PORTS for each in addresses(compose, name) for port in PORTS[name]]
    output = compose.run("exec", "-T", service, "python", "-", json.dumps(tried), script=TRY_ADDRESSES)
    assert {name for name, *_ in json.loads(output)} == REACHED[service] | {service}
