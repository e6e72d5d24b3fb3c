"""Run the system in docker-compose.yml with a separate project name, ports and settings for tests."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
from notify_local.ports import Ports

from support.servers import PROJECT

NAME = "notify-test"
LABEL = f"label=com.docker.compose.project={NAME}"
HEALTHY_TIMEOUT = 180  # seconds


class Compose:
    """A Docker Compose project with the settings and secrets that `make env` creates; `set` changes the settings."""

    def __init__(self, env_file: Path, *files: str) -> None:
        self._files = [f"--file={file}" for file in files]  # COMPOSE_FILE or docker-compose.yml, if none is named
        subprocess.run(["make", "env", f"FILE={env_file}"], cwd=PROJECT, check=True)  # noqa: S603, S607 - ours, found on PATH
        created = env_file.read_text().splitlines()
        self._settings = dict(line.split("=", 1) for line in created if line and line[0] != "#")
        self._env_file = env_file
        self.secrets = Path(self._settings["SECRETS_DIR"])
        ports = Ports()
        self.set(TAG="test")  # so that a developer's own images are not replaced
        self.set(APP_PORT=str(ports.free(28080)), RABBITMQ_MANAGEMENT_PORT=str(ports.free(45672)))

    def set(self, **settings: str) -> None:
        """Change settings, as an operator would by editing `.env`."""
        self._settings |= settings
        self._env_file.write_text("".join(f"{name}={value}\n" for name, value in self._settings.items()))

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().removesuffix("\n")

    def run(self, *arguments: str, script: str = "") -> str:
        """Run `docker compose …`, which must succeed, and return its output."""
        options = ("-p", NAME, *self._files, "--env-file", str(self._env_file))
        return docker("compose", *options, *arguments, script=script)

    async def up(self, *arguments: str) -> None:
        """Start all services, and wait until they are healthy, without blocking the event loop."""
        wait = ("--wait", "--wait-timeout", str(HEALTHY_TIMEOUT))
        await asyncio.to_thread(self.run, "up", "-d", *wait, *arguments)

    def containers(self, service: str) -> list[str]:
        return self.run("ps", "-q", service).split()

    def all_containers(self) -> list[str]:
        return self.run("ps", "-q", "--all").split()

    def gateway(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self._settings['APP_PORT']}",
            headers={"Authorization": f"Bearer {self.secret('bootstrap_api_key')}"},
            timeout=60,
            trust_env=False,
        )

    def management(self) -> httpx.Client:
        """Return a client of RabbitMQ's management API."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self._settings['RABBITMQ_MANAGEMENT_PORT']}",
            auth=("admin", self.secret("rabbitmq_admin_password")),
            timeout=30,
            trust_env=False,
        )


def docker(*arguments: str, script: str = "") -> str:
    """Run `docker …`, which must succeed, and return its output."""
    # Drop exported variables, which would override those in the file.
    ours = {"REVISION", *(line.split("=")[0] for line in (PROJECT / ".env.example").read_text().splitlines())}
    environment = {
        name: value for name, value in os.environ.items() if name not in ours and not name.startswith("COMPOSE_")
    }
    done = subprocess.run(  # noqa: S603 - ours
        ["docker", *arguments],  # noqa: S607 - docker may be installed anywhere
        cwd=PROJECT, env=environment, input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


def inspect(container: str) -> Any:
    return json.loads(docker("inspect", container))[0]
