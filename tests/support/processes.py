"""Real processes: the whole system, single services."""

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
from notify_local.stack import as_environment

from support.containers import ServerContainers, running_containers
from support.servers import PROJECT, in_containers

START_TIMEOUT = 240.0  # seconds; RabbitMQ may have to be installed first
STOP_TIMEOUT = 60.0  # seconds
FINAL_TIMEOUT = 100.0  # seconds; a lease of a killed gateway takes 30
FINAL = {"sent", "failed", "expired", "cancelled"}

Json = dict[str, Any]


def local_command(folder: Path, *arguments: str) -> list[str]:
    """A command of the local stack, as the Makefile gives it."""
    return [sys.executable, "-m", "notify_local", "--folder", str(folder), *arguments]


@dataclass(frozen=True)
class System:
    """A running `make up`; or the same services on servers in containers."""

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
        """As `kill -9`; it will be started again."""
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
    """The whole system until the context ends; it must end in order. `scale`: how many of a service, where not one."""
    if in_containers():
        with running_containers() as containers:
            servers = {**as_environment(containers.postgres()), **as_environment(containers.rabbit())}
            with _running("services", folder, {**settings, **servers}, containers=containers) as system:
                yield system
    else:
        replicas = [f"{service}={number}" for service, number in (scale or {}).items()]
        with _running("up", folder, settings, *(["--scale", *replicas] if replicas else [])) as system:
            yield system


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
            cwd=folder.parent,  # no developer's `.env` is there
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
            assert process.wait(STOP_TIMEOUT) == 0, log.read_text()


async def all_final(client: httpx.AsyncClient, ids: Sequence[str]) -> list[Json]:
    """The notifications, once none is pending; a gateway that is being restarted is waited for."""
    deadline = time.monotonic() + FINAL_TIMEOUT
    while (page := await _told(client, "/api/notifications", status="pending", limit=1)) is None or page["items"]:
        assert time.monotonic() < deadline, f"not final: {page}"
        await asyncio.sleep(0.2)
    places = asyncio.Semaphore(20)

    async def final(notification_id: str) -> Json:
        async with places:
            while (notification := await _told(client, f"/api/notifications/{notification_id}")) is None:
                assert time.monotonic() < deadline, f"not told: {notification_id}"
                await asyncio.sleep(0.2)
        assert {delivery["status"] for delivery in notification["deliveries"]} <= FINAL
        return notification

    return await asyncio.gather(*map(final, ids))


async def _told(client: httpx.AsyncClient, path: str, **parameters: Any) -> Json | None:
    """What the gateway answers; None while it can not."""
    try:
        answer = await client.get(path, params=parameters)
    except httpx.TransportError:
        return None
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return None
    told: Json = answer.raise_for_status().json()
    return told


async def crash(point: str, *servers: PostgresSettings | RabbitSettings) -> None:
    """Run the process that dies there."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}
    for server in servers:
        environment |= as_environment(server)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.crashes", point, env=environment, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(STOP_TIMEOUT):
        _, errors = await process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


async def gateway_command(*arguments: str, servers: Sequence[PostgresSettings | RabbitSettings], code: int = 0) -> str:
    """What `notify-gateway …` prints; it must end with `code`."""
    environment = dict(os.environ)
    for server in servers:
        environment |= as_environment(server)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "notify_gateway", *arguments,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == code, errors.decode()
    return output.decode()


@contextmanager
def running_service(
    name: str, *servers: PostgresSettings | RabbitSettings, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    """One service as a process; killed at the end if it still runs."""
    environment = {**os.environ, "AUTH": "off", "HEALTH_PORT": str(Ports().free(18_800)), **settings}
    for server in servers:
        environment |= as_environment(server)
    process = subprocess.Popen(  # noqa: S603 - ours
        [sys.executable, "-m", f"notify_{name}"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


async def answers(url: str, status: int) -> httpx.Response:
    """Wait until `url` answers with `status`."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        deadline = time.monotonic() + STOP_TIMEOUT
        while True:
            try:
                answer = await client.get(url)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == status:
                return answer
            assert time.monotonic() < deadline, f"{url} never answered {status}: {answer and answer.text}"
            await asyncio.sleep(0.05)
