"""The whole system on one machine: which processes, in which order, with which addresses."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import httpx
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.settings import ServiceSettings, load_settings
from notify_database.engine import PostgresSettings
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from notify_local import postgres, rabbitmq
from notify_local.console import say
from notify_local.folder import StackFolder
from notify_local.ports import Ports
from notify_local.rabbitmq_install import rabbitmq_server
from notify_local.supervisor import Program, Supervisor

LOCALHOST, ANY_HOST = "127.0.0.1", "0.0.0.0"  # noqa: S104 - compared with, not bound to
SERVER_START_TIMEOUT = 120.0  # seconds
SERVICE_START_TIMEOUT = 60.0  # seconds

POSTGRES_PORT, RABBITMQ_PORT, MANAGEMENT_PORT, DISTRIBUTION_PORT, EPMD_PORT = 5432, 5672, 15672, 25672, 4370
REPLICA_PORT_STEP = 100  # between the ports of two replicas of a service
SENDERS = tuple(f"{channel}_sender" for channel in Channel)
# In the order of their start: who reads before who writes. The gateway starts last and stops first.
SERVICES = ("status_writer", *SENDERS, "gateway")
GATEWAY_HEALTH_PORT = 8090
FIRST_HEALTH_PORT = 8081


class GatewayWishes(ServiceSettings):
    """What the user wants of the API: the gateway's own settings, but for its door, which is open on this machine."""

    auth: str = "off"
    app_host: str = LOCALHOST
    app_port: int = Field(8080, ge=1, le=65535)


class GivenServers(PostgresSettings, RabbitSettings):
    """Servers that are there already."""


@dataclass(frozen=True)
class Stack:
    """A running stack: how it is reached, and by which settings a service reaches its servers."""

    addresses: Mapping[str, str]
    server_settings: Mapping[str, str]


@asynccontextmanager
async def running_servers(folder: StackFolder) -> AsyncIterator[Stack]:
    """PostgreSQL and RabbitMQ, private to `folder`, until the context ends."""
    with folder.locked():
        folder.end_leftovers()
        supervisor = Supervisor(folder)
        try:
            stack = await _start_servers(supervisor, folder, Ports())
            folder.publish(stack.addresses)
            yield stack
        finally:
            await supervisor.stop()


@asynccontextmanager
async def running_system(
    folder: StackFolder, *, show_logs: bool, scale: Mapping[str, int] | None = None
) -> AsyncIterator[Stack]:
    """The servers and all services until the context ends; `scale`: how many of a service, where not one."""
    with folder.locked():
        folder.end_leftovers()
        supervisor, ports = Supervisor(folder), Ports()
        try:
            servers = await _start_servers(supervisor, folder, ports)
            stack = await _start_services(supervisor, servers, ports, show_logs=show_logs, scale=scale or {})
            folder.publish(stack.addresses)
            yield stack
        finally:
            folder.stack_env.unlink(missing_ok=True)
            say("Stopping: gateway, senders, status writer, RabbitMQ, PostgreSQL …")
            await supervisor.stop()


@asynccontextmanager
async def running_services(folder: StackFolder) -> AsyncIterator[Stack]:
    """All services, on the servers that `POSTGRES_*` and `RABBITMQ_*` name, until the context ends."""
    given = Stack({}, as_environment(load_settings(GivenServers)))
    with folder.locked():
        folder.end_leftovers()
        supervisor = Supervisor(folder)
        try:
            stack = await _start_services(supervisor, given, Ports(), show_logs=True, scale={})
            folder.publish(stack.addresses)
            yield stack
        finally:
            folder.stack_env.unlink(missing_ok=True)
            await supervisor.stop()


def as_environment(settings: BaseSettings) -> dict[str, str]:
    """The variables from which these settings are read."""
    values = {name.upper(): getattr(settings, name) for name in type(settings).model_fields}
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value) for name, value in values.items()
    }


async def _start_servers(supervisor: Supervisor, folder: StackFolder, ports: Ports) -> Stack:
    server = rabbitmq_server(folder.log / "install.log")
    password = folder.password()
    postgres_port, rabbitmq_port = ports.free(POSTGRES_PORT), ports.free(RABBITMQ_PORT)
    management_port, epmd_port = ports.free(MANAGEMENT_PORT), ports.free(EPMD_PORT)
    say(f"Starting PostgreSQL on port {postgres_port} …")
    await supervisor.start(
        postgres.prepare_postgres(folder, postgres_port),
        lambda: postgres.postgres_ready(postgres_port),
        SERVER_START_TIMEOUT,
    )
    postgres.ensure_database(postgres_port, password)
    say(f"Starting RabbitMQ on port {rabbitmq_port} …")
    await supervisor.start(rabbitmq.prepare_epmd(epmd_port), _at_once, SERVER_START_TIMEOUT)
    node = rabbitmq.prepare_rabbitmq(
        folder,
        server,
        port=rabbitmq_port,
        management_port=management_port,
        distribution_port=ports.free(DISTRIBUTION_PORT),
        epmd_port=epmd_port,
    )
    await supervisor.start(node, lambda: rabbitmq.rabbitmq_ready(management_port, password), SERVER_START_TIMEOUT)
    secret = quote(password, safe="")
    return Stack(
        addresses={
            "RABBITMQ_URL": f"amqp://{rabbitmq.USER}:{secret}@127.0.0.1:{rabbitmq_port}/",
            "RABBITMQ_MANAGEMENT_URL": f"http://{rabbitmq.USER}:{secret}@127.0.0.1:{management_port}",
            "POSTGRES_URL": f"postgresql://{postgres.USER}:{secret}@127.0.0.1:{postgres_port}/{postgres.DATABASE}",
        },
        server_settings={
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(postgres_port),
            "POSTGRES_DATABASE": postgres.DATABASE,
            "POSTGRES_USER": postgres.USER,
            "POSTGRES_PASSWORD": password,
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_PORT": str(rabbitmq_port),
            "RABBITMQ_USER": rabbitmq.USER,
            "RABBITMQ_PASSWORD": password,
            "RABBITMQ_VHOST": "/",
        },
    )


async def _start_services(
    supervisor: Supervisor, servers: Stack, ports: Ports, *, show_logs: bool, scale: Mapping[str, int]
) -> Stack:
    settings = servers.server_settings
    say("Migrating the database …")
    await supervisor.run(Program("migrate", [sys.executable, "-m", "notify_database.migrate"], settings))
    say("Starting the services …")
    for number, service in enumerate(service for service in SERVICES if service != "gateway"):
        for replica in range(scale.get(service, 1)):
            port = ports.free(FIRST_HEALTH_PORT + number + replica * REPLICA_PORT_STEP)
            environment = {**settings, "HEALTH_HOST": LOCALHOST, "HEALTH_PORT": str(port)}
            program = _service(service, replica, environment, shown=show_logs)
            await supervisor.start(program, _ready_at(port), SERVICE_START_TIMEOUT)
    wishes, gateways = load_settings(GatewayWishes), {}
    host = LOCALHOST if wishes.app_host == ANY_HOST else wishes.app_host
    for replica in range(scale.get("gateway", 1)):
        port = ports.free(wishes.app_port + replica * REPLICA_PORT_STEP)
        health_port = ports.free(GATEWAY_HEALTH_PORT + replica * REPLICA_PORT_STEP)
        environment = {
            **settings, **_management(servers),
            "APP_PORT": str(port), "AUTH": wishes.auth, "HEALTH_PORT": str(health_port),
        }  # fmt: skip
        await supervisor.start(
            _service("gateway", replica, environment, shown=show_logs), _ready_at(port, host), SERVICE_START_TIMEOUT
        )
        gateways[f"GATEWAY_{replica + 1}_URL" if replica else "GATEWAY_URL"] = f"http://{host}:{port}"
    return Stack({**gateways, **servers.addresses}, settings)


def _management(servers: Stack) -> dict[str, str]:
    """Where the console of the gateway finds RabbitMQ's figures, and its user the UI."""
    url = servers.addresses.get("RABBITMQ_MANAGEMENT_URL")
    if url is None:
        return {}
    address = urlsplit(url)
    plain = f"http://{address.hostname}:{address.port}"
    return {"RABBITMQ_MANAGEMENT_URL": plain, "RABBITMQ_UI_URL": plain}


def _service(service: str, replica: int, environment: Mapping[str, str], *, shown: bool) -> Program:
    name = f"{service}-{replica + 1}" if replica else service
    # They are read by people, here and in the folder of the logs.
    readable = {"LOG_FORMAT": os.environ.get("LOG_FORMAT", "console")}
    return Program(name, [sys.executable, "-m", f"notify_{service}"], {**readable, **environment}, shown=shown)


def _ready_at(port: int, host: str = LOCALHOST) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            try:
                answer = await client.get(f"http://{host}:{port}/readyz")
            except httpx.TransportError:
                return False
        # The gateway is ready to accept without RabbitMQ; the whole system is not.
        return answer.status_code == httpx.codes.OK and answer.json().get("rabbitmq", "ready") == "ready"

    return ready


async def _at_once() -> bool:
    return True
