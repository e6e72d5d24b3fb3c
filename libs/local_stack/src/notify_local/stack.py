"""Starts the system's processes on one machine in the right order and publishes their addresses."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

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
from notify_local.rabbitmq import NodePorts
from notify_local.rabbitmq_install import rabbitmq_server
from notify_local.supervisor import Program, Supervisor

LOCALHOST, ANY_HOST = "127.0.0.1", "0.0.0.0"  # noqa: S104 - only compared, not bound
SERVER_START_TIMEOUT = 120.0  # seconds
SERVICE_START_TIMEOUT = 60.0  # seconds

POSTGRES_PORT = 5432
REPLICA_PORT_STEP = 100  # the difference between the ports of consecutive replicas
SENDERS = tuple(f"{channel}_sender" for channel in Channel)
# Services start in this order, consumers before producers, and stop in the reverse order.
SERVICES = ("status_writer", *SENDERS, "gateway")
GATEWAY_HEALTH_PORT = 8090
# The users that `notify-migrate` creates in PostgreSQL are named after their services.
OWNER_USER = "owner"
SERVICE_USERS = frozenset({"gateway", "status_writer"})
FIRST_HEALTH_PORT = 8081


class GatewayOptions(ServiceSettings):
    """The gateway settings that the local stack reads, with its own defaults: on one machine, nobody balances load."""

    auth: str = "off"
    bootstrap_api_key: SecretStr | None = None
    app_host: str = LOCALHOST
    app_port: int = Field(8080, ge=1, le=65535)
    shutdown_delay: float = 0.0


class ExternalServers(PostgresSettings, RabbitSettings):
    """The addresses and logins of servers that the stack does not start itself."""


@dataclass(frozen=True)
class Stack:
    """A running stack: its addresses, and the settings with which services connect to its servers."""

    addresses: Mapping[str, str]
    server_settings: Mapping[str, str]


@asynccontextmanager
async def _supervisor(folder: StackFolder) -> AsyncIterator[Supervisor]:
    with folder.locked():
        folder.end_leftovers()
        supervisor = Supervisor(folder)
        try:
            yield supervisor
        finally:
            folder.stack_env.unlink(missing_ok=True)
            await supervisor.stop()


@asynccontextmanager
async def running_servers(folder: StackFolder) -> AsyncIterator[Stack]:
    """Run PostgreSQL and RabbitMQ, with their data in `folder`, until the context ends."""
    async with _supervisor(folder) as supervisor:
        stack = await _start_servers(supervisor, folder, Ports())
        folder.publish(stack.addresses)
        yield stack


@asynccontextmanager
async def running_system(
    folder: StackFolder, *, show_logs: bool, scale: Mapping[str, int] | None = None
) -> AsyncIterator[Stack]:
    """Run the servers and all services until the context ends; `scale` has replica counts by service (default: 1)."""
    async with _supervisor(folder) as supervisor:
        ports = Ports()
        try:
            servers = await _start_servers(supervisor, folder, ports)
            stack = await _start_services(supervisor, servers, ports, show_logs=show_logs, scale=scale or {})
            folder.publish(stack.addresses)
            yield stack
        finally:
            say("Stopping the gateway, the senders, the status writer, RabbitMQ and PostgreSQL …")


@asynccontextmanager
async def running_services(folder: StackFolder, *, scale: Mapping[str, int] | None = None) -> AsyncIterator[Stack]:
    """Run all services with the servers that `POSTGRES_*` and `RABBITMQ_*` specify, until the context ends."""
    servers = Stack({}, as_environment(load_settings(ExternalServers)))
    async with _supervisor(folder) as supervisor:
        stack = await _start_services(supervisor, servers, Ports(), show_logs=True, scale=scale or {})
        folder.publish(stack.addresses)
        yield stack


def as_environment(settings: BaseSettings) -> dict[str, str]:
    """Return the environment variables that produce these settings."""
    given = {name: value for name, value in settings if value is not None}
    return {
        name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in given.items()
        if f"{name}s" not in given  # RABBITMQ_HOST is refused beside RABBITMQ_HOSTS
    }


async def _start_servers(supervisor: Supervisor, folder: StackFolder, ports: Ports) -> Stack:
    server = rabbitmq_server(folder.log / "install.log")
    password = folder.password()
    postgres_port, node_ports = ports.free(POSTGRES_PORT), NodePorts(*map(ports.free, NodePorts()))
    say(f"Starting PostgreSQL on port {postgres_port} …")
    await supervisor.start(
        postgres.prepare_postgres(folder, postgres_port),
        lambda: postgres.postgres_ready(postgres_port),
        SERVER_START_TIMEOUT,
    )
    postgres.ensure_database(postgres_port, password)
    say(f"Starting RabbitMQ on port {node_ports.amqp} …")
    await supervisor.start(rabbitmq.prepare_epmd(node_ports.epmd), _at_once, SERVER_START_TIMEOUT)
    node = rabbitmq.prepare_rabbitmq(folder, server, node_ports)
    await supervisor.start(node, lambda: rabbitmq.rabbitmq_ready(node_ports.management, password), SERVER_START_TIMEOUT)
    await rabbitmq.limit_archives(node_ports.management, password)
    secret = quote(password, safe="")
    return Stack(
        addresses={
            "RABBITMQ_URL": f"amqp://{rabbitmq.USER}:{secret}@127.0.0.1:{node_ports.amqp}/",
            "RABBITMQ_MANAGEMENT_URL": f"http://{rabbitmq.USER}:{secret}@127.0.0.1:{node_ports.management}",
            "POSTGRES_URL": f"postgresql://{postgres.USER}:{secret}@127.0.0.1:{postgres_port}/{postgres.DATABASE}",
        },
        server_settings={
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(postgres_port),
            "POSTGRES_DATABASE": postgres.DATABASE,
            "POSTGRES_USER": postgres.USER,
            "POSTGRES_PASSWORD": password,
            # These servers have no certificates, whatever `.env` says about those of Compose.
            "POSTGRES_SSLMODE": "disable",
            "RABBITMQ_TLS": "false",
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_PORT": str(node_ports.amqp),
            "RABBITMQ_USER": rabbitmq.USER,
            "RABBITMQ_PASSWORD": password,
            "RABBITMQ_VHOST": "/",
            # The gateway reads queue statistics from the management API and links to the management UI.
            "RABBITMQ_MANAGEMENT_URL": f"http://127.0.0.1:{node_ports.management}",
            "RABBITMQ_UI_URL": f"http://127.0.0.1:{node_ports.management}",
        },
    )


async def _start_services(
    supervisor: Supervisor, servers: Stack, ports: Ports, *, show_logs: bool, scale: Mapping[str, int]
) -> Stack:
    settings = servers.server_settings
    say("Migrating the database …")
    await supervisor.run(Program("migrate", [sys.executable, "-m", "notify_database.migrate"], _migration(settings)))
    say("Starting the services …")
    maintenance = [sys.executable, "-m", "notify_database.maintenance"]
    await supervisor.start(
        Program("maintenance", maintenance, {**settings, "POSTGRES_USER": OWNER_USER}), _at_once, SERVICE_START_TIMEOUT
    )
    for number, service in enumerate(service for service in SERVICES if service != "gateway"):
        for replica in range(scale.get(service, 1)):
            port = ports.free(FIRST_HEALTH_PORT + number + replica * REPLICA_PORT_STEP)
            environment = {**as_user_of(service, settings), "HEALTH_HOST": LOCALHOST, "HEALTH_PORT": str(port)}
            program = _service(service, replica, environment, shown=show_logs)
            await supervisor.start(program, _ready_at(port), SERVICE_START_TIMEOUT)
    options, gateways = load_settings(GatewayOptions), {}
    host = LOCALHOST if options.app_host == ANY_HOST else options.app_host
    for replica in range(scale.get("gateway", 1)):
        port = ports.free(options.app_port + replica * REPLICA_PORT_STEP)
        health_port = ports.free(GATEWAY_HEALTH_PORT + replica * REPLICA_PORT_STEP)
        environment = {
            **as_user_of("gateway", settings),
            "APP_PORT": str(port),
            "AUTH": options.auth,
            "HEALTH_PORT": str(health_port),
            "SHUTDOWN_DELAY": str(options.shutdown_delay),
        }
        program = _service("gateway", replica, environment, shown=show_logs)
        await supervisor.start(program, _ready_at(port, host), SERVICE_START_TIMEOUT)
        gateways[f"GATEWAY_{replica + 1}_URL" if replica else "GATEWAY_URL"] = f"http://{host}:{port}"
    return Stack({**gateways, **servers.addresses}, settings)


def _migration(settings: Mapping[str, str]) -> Mapping[str, str]:
    """Return the settings of `notify-migrate`. On one developer's machine, all users have the same password."""
    password = settings["POSTGRES_PASSWORD"]
    return {
        **settings,
        "POSTGRES_USER": OWNER_USER,
        "POSTGRES_ADMIN_USER": settings["POSTGRES_USER"],
        "POSTGRES_ADMIN_PASSWORD": password,
        "POSTGRES_GATEWAY_PASSWORD": password,
        "POSTGRES_STATUS_WRITER_PASSWORD": password,
    }


def as_user_of(service: str, settings: Mapping[str, str]) -> Mapping[str, str]:
    """Return the settings of a service, with the PostgreSQL user that `notify-migrate` creates for it."""
    return {**settings, "POSTGRES_USER": service} if service in SERVICE_USERS else settings


def _service(service: str, replica: int, environment: Mapping[str, str], *, shown: bool) -> Program:
    name = f"{service}-{replica + 1}" if replica else service
    # The default is not JSON, because people read these logs on the terminal and in the folder.
    log_format = {"LOG_FORMAT": os.environ.get("LOG_FORMAT", "console")}
    return Program(name, [sys.executable, "-m", f"notify_{service}"], {**log_format, **environment}, shown=shown)


def _ready_at(port: int, host: str = LOCALHOST) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            try:
                response = await client.get(f"http://{host}:{port}/readyz")
            except httpx.TransportError:
                return False
        # The gateway reports that it is ready even without RabbitMQ, but the whole system needs RabbitMQ.
        return response.status_code == httpx.codes.OK and response.json().get("rabbitmq", "ready") == "ready"

    return ready


async def _at_once() -> bool:
    return True
