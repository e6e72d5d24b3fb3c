"""Provide PostgreSQL and RabbitMQ for a test run: existing servers, the local stack's servers, or containers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings

from support.containers import running_containers

START_TIMEOUT = 240.0  # seconds; RabbitMQ may have to be installed first
PROJECT = Path(__file__).parents[2]
# Permissions in RabbitMQ: https://www.rabbitmq.com/docs/access-control
ALL_RIGHTS = {"configure": ".*", "write": ".*", "read": ".*"}
WITHOUT_CONFIGURE = {**ALL_RIGHTS, "configure": "^$"}


@dataclass(frozen=True)
class Servers:
    """The settings of both servers, and the URL of RabbitMQ's management API."""

    postgres: PostgresSettings
    rabbit: RabbitSettings
    management_url: str

    def management(self) -> httpx.Client:
        """Return a client of the management API."""
        user, password = self.rabbit.rabbitmq_user, self.rabbit.rabbitmq_password.get_secret_value()
        return httpx.Client(base_url=self.management_url, auth=(user, password), timeout=30, trust_env=False)


def permit(servers: Servers, rabbit: RabbitSettings, rights: Mapping[str, str]) -> None:
    """Give the services' user these rights in the virtual host of a test."""
    with servers.management() as management:
        name = f"{rabbit.rabbitmq_vhost}/{servers.rabbit.rabbitmq_user}"
        management.put(f"/api/permissions/{name}", json=dict(rights)).raise_for_status()


def in_containers() -> bool:
    """Return True if `TEST_SERVERS` is `containers`, and False if it is `local`, the default."""
    value = os.environ.get("TEST_SERVERS", "local")
    if value not in {"local", "containers"}:
        pytest.exit(f"TEST_SERVERS must be local or containers, not {value!r}", returncode=2)
    return value == "containers"


@contextmanager
def servers_for_tests(folder: Path) -> Iterator[Servers]:
    """Yield the servers for a whole test run; start them first unless existing ones are configured."""
    if not in_containers() and "POSTGRES_HOST" in os.environ and "RABBITMQ_HOST" in os.environ:
        rabbit = RabbitSettings()
        yield Servers(
            PostgresSettings(),
            rabbit,
            os.environ.get("RABBITMQ_MANAGEMENT_URL", f"http://{rabbit.rabbitmq_host}:15672"),
        )
        return
    if in_containers():
        with running_containers() as containers:
            yield Servers(containers.postgres(), containers.rabbit(), containers.management_url())
        return
    command = [sys.executable, "-m", "notify_local", "--folder", str(folder), "servers"]
    with (folder.with_suffix(".log")).open("w+b") as log:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - ours
        try:
            addresses = _await_addresses(process, folder / "stack.env")
            if addresses is None:
                log.seek(0)
                raise RuntimeError(
                    f"The local stack did not start, so the tests have no servers:\n{log.read().decode()}\n"
                    "Set TEST_SERVERS=containers to use Docker, or set POSTGRES_* and RABBITMQ_* to use other servers."
                )
            yield _from_addresses(addresses)
        finally:
            process.terminate()
            process.wait(60)


def _await_addresses(process: subprocess.Popen[bytes], file: Path) -> dict[str, str] | None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if file.exists():
            return dict(line.split("=", 1) for line in file.read_text().splitlines())
        if process.poll() is not None:
            return None
        time.sleep(0.1)
    return None


def _from_addresses(addresses: dict[str, str]) -> Servers:
    postgres, amqp = urlsplit(addresses["POSTGRES_URL"]), urlsplit(addresses["RABBITMQ_URL"])
    management = urlsplit(addresses["RABBITMQ_MANAGEMENT_URL"])
    password = unquote(postgres.password or "")
    return Servers(
        PostgresSettings.model_validate(
            {
                "postgres_host": postgres.hostname,
                "postgres_port": postgres.port,
                "postgres_database": postgres.path.removeprefix("/"),
                "postgres_user": postgres.username,
                "postgres_password": password,
            }
        ),
        RabbitSettings.model_validate(
            {
                "rabbitmq_host": amqp.hostname,
                "rabbitmq_port": amqp.port,
                "rabbitmq_user": amqp.username,
                "rabbitmq_password": unquote(amqp.password or ""),
            }
        ),
        f"http://{management.hostname}:{management.port}",
    )
