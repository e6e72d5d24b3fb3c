"""Test single services as processes: startup, shutdown and startup errors."""

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_local.ports import Ports
from notify_local.stack import OWNER_USER, SENDERS
from support.processes import STOP_TIMEOUT, answers, running_service
from support.roles import as_user, session
from support.servers import PROJECT
from support.services import NOWHERE, eventually


@pytest.fixture
def port() -> int:
    """Return an unused port."""
    return Ports().free(18_900)


@pytest.mark.parametrize("name", [*SENDERS, "status_writer"])
async def test_worker_without_a_broker_is_live_but_not_ready_and_stops_cleanly(
    name: str, postgres: PostgresSettings, port: int
) -> None:
    with running_service(name, NOWHERE, postgres, HEALTH_PORT=str(port)) as worker:
        await answers(f"http://127.0.0.1:{port}/livez", 200)
        response = await answers(f"http://127.0.0.1:{port}/readyz", 503)
        assert "not connected to RabbitMQ" in response.text
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, STOP_TIMEOUT) == 0


async def test_gateway_serves_metrics_on_the_health_port(
    rabbit: RabbitSettings, postgres: PostgresSettings, port: int
) -> None:
    health_port = Ports().free(18_900)
    settings = {"APP_PORT": str(port), "HEALTH_PORT": str(health_port)}
    with running_service("gateway", rabbit, postgres, **settings):
        await answers(f"http://127.0.0.1:{port}/readyz", 200)
        await answers(f"http://127.0.0.1:{port}/metrics", 404)
        await answers(f"http://127.0.0.1:{health_port}/readyz", 200)
        metrics = await answers(f"http://127.0.0.1:{health_port}/metrics", 200)
        assert "notify_outbox_rows 0.0" in metrics.text
        await answers(f"http://127.0.0.1:{health_port}/api/notifications", 404)


async def test_occupied_port_stops_the_service_with_a_message(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "notify_email_sender"],
            env={"HEALTH_PORT": str(port)}, capture_output=True, text=True, timeout=STOP_TIMEOUT, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


async def test_fifty_repeats_across_two_gateways_create_one_notification(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    ports = Ports()
    first, second = ports.free(18_900), ports.free(18_900)
    with (
        running_service("gateway", rabbit, postgres, APP_PORT=str(first)),
        running_service("gateway", rabbit, postgres, APP_PORT=str(second)),
    ):
        urls = [f"http://127.0.0.1:{port}" for port in (first, second)]
        for url in urls:
            await answers(f"{url}/readyz", 200)
        body = {"user_id": 1, "message": "x", "type": "email"}
        async with httpx.AsyncClient(trust_env=False, timeout=30, headers={"Idempotency-Key": "once"}) as client:
            responses = await asyncio.gather(
                *(client.post(f"{urls[number % 2]}/api/notifications", json=body) for number in range(50))
            )
            listed = (await client.get(f"{urls[0]}/api/notifications")).json()["items"]
    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert sum("Idempotent-Replayed" not in response.headers for response in responses) == 1
    assert [item["id"] for item in listed] == [responses[0].json()["id"]]


LAST_WEEK = "SELECT max(relname) FROM pg_class WHERE relname ~ '^attempts_until_[0-9]+$'"


async def test_maintenance_creates_a_missing_week_as_the_owner_and_stops_cleanly(with_roles: PostgresSettings) -> None:
    owner = as_user(with_roles, OWNER_USER)
    async with session(owner) as connection:
        missing = await connection.fetchval(LAST_WEEK)
        await connection.execute(f"DROP TABLE {missing}")

        async def exists() -> bool:
            return bool(await connection.fetchval(LAST_WEEK) == missing)

        with running_service("database.maintenance", owner, LOG_LEVEL="WARNING") as maintenance:
            await eventually(exists, "the week is created again")
            maintenance.send_signal(signal.SIGTERM)
            _, errors = await asyncio.to_thread(maintenance.communicate, timeout=STOP_TIMEOUT)
    assert (maintenance.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("gateway", "APP_PORT", "http"),
        ("telegram_sender", "ERROR_PROBABILITY", "2"),
        ("status_writer", "POSTGRES_PORT", "0"),
    ],
)
def test_invalid_setting_stops_the_service_and_names_the_variable(name: str, variable: str, value: str) -> None:
    done = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-m", f"notify_{name}"],
        env={variable: value}, capture_output=True, text=True, timeout=STOP_TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert variable in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["notify_gateway", "notify_status_writer", "notify_database.migrate", "notify_database.maintenance"]
)
def test_rejected_postgresql_login_stops_the_service_with_a_message(
    command: str, postgres: PostgresSettings, port: int
) -> None:
    environment = {
        "POSTGRES_HOST": postgres.postgres_host, "POSTGRES_PORT": str(postgres.postgres_port),
        "POSTGRES_PASSWORD": "wrong password", "APP_PORT": str(port), "HEALTH_PORT": str(Ports().free(18_900)),
    }  # fmt: skip
    done = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-m", command],
        env=environment, capture_output=True, text=True, timeout=STOP_TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "PostgreSQL refuses the login" in done.stderr
    assert "wrong password" not in done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("sender", SENDERS)
def test_sender_installs_neither_database_driver_nor_fastapi(sender: str, tmp_path: Path) -> None:
    """Install the sender from its lock file into a new virtual environment."""
    folder, environment = PROJECT / "services" / sender, tmp_path / "venv"
    python = environment / "bin" / "python"

    def run(*command: str | Path) -> None:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        assert done.returncode == 0, done.stdout + done.stderr

    uv = (sys.executable, "-m", "uv", "--quiet")
    install = (*uv, "pip", "install", "--python", python)
    run(*uv, "venv", "--python", sys.executable, environment)
    run(*install, "--require-hashes", "-r", folder / "requirements.lock")
    run(*install, "--no-deps", PROJECT / "libs" / "common", folder)
    run(python, "-c", f"import notify_{sender}.main")
    for module in ("sqlalchemy", "asyncpg", "fastapi", "notify_database"):
        run(python, "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is not None)")
