"""Real processes: the whole system, single services."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from notify_common.rabbitmq import RabbitSettings
from notify_database.engine import PostgresSettings

from support.servers import PROJECT

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
    """A running `make up`."""

    folder: Path
    process: subprocess.Popen[bytes]

    def addresses(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.folder / "stack.env").read_text().splitlines())

    def pid(self, name: str) -> int:
        return int((self.folder / "run" / f"{name}.pid").read_text())

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=600)
        return httpx.AsyncClient(base_url=self.addresses()["GATEWAY_URL"], timeout=60, limits=limits, trust_env=False)


@contextmanager
def running_system(folder: Path, **settings: str) -> Iterator[System]:
    """The whole system until the context ends; it must end in order."""
    log = folder.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - ours
            local_command(folder, "up"), cwd=PROJECT, env={**os.environ, **settings}, stdout=output, stderr=output
        )
        system = System(folder, process)
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


async def all_final(client: httpx.AsyncClient, ids: list[str]) -> list[Json]:
    """The notifications, once each is final; a gateway that is being restarted is waited for."""
    remaining, final = list(ids), []
    deadline = time.monotonic() + FINAL_TIMEOUT
    while remaining:
        assert time.monotonic() < deadline, f"{len(remaining)} of {len(ids)} are not final: {remaining[:3]}"
        for notification_id in list(remaining):
            try:
                answer = await client.get(f"/api/notifications/{notification_id}")
            except httpx.TransportError:
                break
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                break
            notification: Json = answer.raise_for_status().json()
            if all(delivery["status"] in FINAL for delivery in notification["deliveries"]):
                remaining.remove(notification_id)
                final.append(notification)
        await asyncio.sleep(0.2)
    return final


@contextmanager
def running_service(
    name: str, *servers: PostgresSettings | RabbitSettings, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    """One service as a process; killed at the end if it still runs."""
    environment = {**os.environ, **settings}
    for server in servers:
        for key, value in server.model_dump().items():
            secret = getattr(value, "get_secret_value", None)
            environment[key.upper()] = str(secret() if secret else value)
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
