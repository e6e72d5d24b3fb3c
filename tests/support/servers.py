"""The PostgreSQL and RabbitMQ of a test run: the given ones, else the local stack's, else containers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from notify_common.rabbitmq import RabbitSettings
from notify_database.engine import PostgresSettings

START_TIMEOUT = 240.0  # seconds; RabbitMQ may have to be installed first
PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Servers:
    """Both servers, and RabbitMQ's management API."""

    postgres: PostgresSettings
    rabbit: RabbitSettings
    management_url: str

    def management(self) -> httpx.Client:
        """A client of the management API, logged in."""
        user, password = self.rabbit.rabbitmq_user, self.rabbit.rabbitmq_password.get_secret_value()
        return httpx.Client(base_url=self.management_url, auth=(user, password), timeout=30, trust_env=False)


@contextmanager
def servers_for_tests(folder: Path) -> Iterator[Servers]:
    """Servers for the whole run."""
    if "POSTGRES_HOST" in os.environ and "RABBITMQ_HOST" in os.environ:
        rabbit = RabbitSettings()
        yield Servers(
            PostgresSettings(),
            rabbit,
            os.environ.get("RABBITMQ_MANAGEMENT_URL", f"http://{rabbit.rabbitmq_host}:15672"),
        )
        return
    command = [sys.executable, "-m", "notify_local", "--folder", str(folder), "servers"]
    with (folder.with_suffix(".log")).open("w+b") as log:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - ours
        try:
            addresses = _await_addresses(process, folder / "stack.env")
            if addresses is None:
                log.seek(0)
                with _containers(log.read().decode()) as servers:
                    yield servers
            else:
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


@contextmanager
def _containers(why_not_local: str) -> Iterator[Servers]:
    """Both servers in containers, where a Docker engine answers."""
    from docker import from_env  # noqa: PLC0415 - only where the local stack can not run
    from docker.errors import DockerException  # noqa: PLC0415 - as above
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - as above
    from testcontainers.rabbitmq import RabbitMqContainer  # noqa: PLC0415 - as above

    try:
        from_env().ping()
    except DockerException as error:
        raise RuntimeError(
            f"No servers for the tests. The local stack does not start:\n{why_not_local}\n"
            f"and no Docker engine answers: {error}\nOr give POSTGRES_* and RABBITMQ_* of running ones."
        ) from error
    with (
        PostgresContainer("postgres:17", driver=None) as postgres,
        RabbitMqContainer("rabbitmq:4-management").with_exposed_ports(15672) as rabbit,
    ):
        host = rabbit.get_container_host_ip()
        yield Servers(
            PostgresSettings.model_validate(
                {
                    "postgres_host": postgres.get_container_host_ip(),
                    "postgres_port": postgres.get_exposed_port(5432),
                    "postgres_database": postgres.dbname,
                    "postgres_user": postgres.username,
                    "postgres_password": postgres.password,
                }
            ),
            RabbitSettings.model_validate({"rabbitmq_host": host, "rabbitmq_port": rabbit.get_exposed_port(5672)}),
            f"http://{host}:{rabbit.get_exposed_port(15672)}",
        )
