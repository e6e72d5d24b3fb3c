"""Run the whole system, or single services, as real processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_local.ports import Ports
from notify_local.stack import as_environment, as_user_of

from support.containers import ServerContainers, running_containers
from support.servers import PROJECT, in_containers

START_TIMEOUT = 240.0  # seconds; RabbitMQ may have to be installed first
STOP_TIMEOUT = 60.0  # seconds
# Processes stop one after the other. If queues are lost, each of up to ten takes all the time that it is given.
SYSTEM_STOP_TIMEOUT = 360.0  # seconds
FINAL_TIMEOUT = 100.0  # seconds; a killed gateway's outbox leases last 30
TRY_AGAIN = {429, 503, 504}
FINAL = {"sent", "failed", "expired", "cancelled"}

Json = dict[str, Any]


def local_command(folder: Path, *arguments: str) -> list[str]:
    """Return the command line that runs `notify_local` with these arguments."""
    return [sys.executable, "-m", "notify_local", "--folder", str(folder), *arguments]


@dataclass(frozen=True)
class System:
    """A running system: the stack that `make up` runs, or the same services with both servers in containers."""

    folder: Path
    process: subprocess.Popen[bytes]
    containers: ServerContainers | None = None

    def addresses(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.folder / "stack.env").read_text().splitlines())

    def amqp_url(self) -> str:
        return self.containers.rabbit().amqp_url() if self.containers else self.addresses()["RABBITMQ_URL"]

    def pid(self, name: str) -> int:
        if self.containers is not None and name in self.containers.by_name:
            return self.containers.pid(name)
        return int((self.folder / "run" / f"{name}.pid").read_text())

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL; its supervisor restarts it."""
        if self.containers is not None and name in self.containers.by_name:
            self.containers.kill(name)
        else:
            os.kill(self.pid(name), signal.SIGKILL)

    def client(self, gateway: str = "GATEWAY_URL") -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=600)
        return httpx.AsyncClient(base_url=self.addresses()[gateway], timeout=60, limits=limits, trust_env=False)


@contextmanager
def running_system(
    folder: Path, settings: Mapping[str, str], *, scale: Mapping[str, int] | None = None
) -> Iterator[System]:
    """Run the whole system until the context ends; it must exit cleanly. `scale` maps services to process counts."""
    if in_containers():
        with running_containers() as containers:
            servers = {**as_environment(containers.postgres()), **as_environment(containers.rabbit())}
            with _running("services", folder, {**settings, **servers}, containers=containers) as system:
                yield system
    else:
        with _running("up", folder, settings, *_scaled(scale or {})) as system:
            yield system


@contextmanager
def running_services(folder: Path, settings: Mapping[str, str], scale: Mapping[str, int]) -> Iterator[System]:
    """Run all services, with the servers in `settings`, until the context ends."""
    with _running("services", folder, settings, *_scaled(scale)) as system:
        yield system


def _scaled(scale: Mapping[str, int]) -> list[str]:
    replicas = [f"{service}={number}" for service, number in scale.items()]
    return ["--scale", *replicas] if replicas else []


@contextmanager
def _running(
    command: str,
    folder: Path,
    settings: Mapping[str, str],
    *options: str,
    containers: ServerContainers | None = None,
) -> Iterator[System]:
    log = folder.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - ours
            local_command(folder, command, *options),
            cwd=folder.parent,  # a folder without a developer's `.env`
            env={**os.environ, **settings},
            stdout=output,
            stderr=output,
        )
        system = System(folder, process, containers)
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not (folder / "stack.env").exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield system
        finally:
            process.terminate()
            assert process.wait(SYSTEM_STOP_TIMEOUT) == 0, log.read_text()


async def all_final(client: httpx.AsyncClient, ids: Sequence[str]) -> list[Json]:
    """Wait until all notifications are final, and return them; the gateway may restart in the meantime."""
    deadline = time.monotonic() + FINAL_TIMEOUT
    while (page := await _get(client, "/api/notifications", status="pending", limit=1)) is None or page["items"]:
        assert time.monotonic() < deadline, f"not final: {page}"
        await asyncio.sleep(0.2)
    slots = asyncio.Semaphore(20)

    async def final(notification_id: str) -> Json:
        async with slots:
            while (notification := await _get(client, f"/api/notifications/{notification_id}")) is None:
                assert time.monotonic() < deadline, f"no response for {notification_id}"
                await asyncio.sleep(0.2)
        assert {delivery["status"] for delivery in notification["deliveries"]} <= FINAL
        return notification

    return await asyncio.gather(*map(final, ids))


async def _get(client: httpx.AsyncClient, path: str, **parameters: Any) -> Json | None:
    """Return the gateway's response, or None if the gateway or its database is unavailable or slow."""
    try:
        response = await client.get(path, params=parameters)
    except httpx.TransportError:
        return None
    if response.status_code in TRY_AGAIN:
        return None
    content: Json = response.raise_for_status().json()
    return content


async def crash(point: str, *servers: PostgresSettings | RabbitSettings) -> None:
    """Run a process that kills itself at `point`, one of the points in `support.crashes`."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}
    for server in servers:
        environment |= as_environment(server)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.crashes", point, env=environment, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(STOP_TIMEOUT):
        _, errors = await process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


async def gateway_command(
    *arguments: str, servers: Sequence[PostgresSettings | RabbitSettings], code: int = 0, **settings: str
) -> str:
    """Run `notify-gateway …`, which must exit with `code`, and return its output, or its errors if it has failed."""
    environment = os.environ | settings
    for server in servers:
        environment |= as_user_of("gateway", as_environment(server))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "notify_gateway", *arguments,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == code, errors.decode()
    return (errors if code else output).decode()


@contextmanager
def running_service(
    name: str, *servers: PostgresSettings | RabbitSettings, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    """Run one service as a process, with its own PostgreSQL user; kill it at the end if it is still running."""
    environment = {**os.environ, "AUTH": "off", "SHUTDOWN_DELAY": "0", "HEALTH_PORT": str(Ports().free(18_800))}
    for server in servers:
        environment |= as_user_of(name, as_environment(server))
    environment |= settings
    process = subprocess.Popen(  # noqa: S603 - ours
        [sys.executable, "-m", f"notify_{name}"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


async def answers(url: str, status: int, *, timeout: float = STOP_TIMEOUT) -> httpx.Response:
    """Request `url` until it responds with `status`, and return the response."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        deadline = time.monotonic() + timeout
        while True:
            try:
                response = await client.get(url)
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code == status:
                return response
            assert time.monotonic() < deadline, f"{url} never responded with {status}: {response and response.text}"
            await asyncio.sleep(0.05)
