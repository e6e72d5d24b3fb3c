"""Run the command `notify` in tests."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from notify_client.cli.app import app
from typer.testing import CliRunner

from support.services import TIMEOUT


@dataclass(frozen=True)
class Printed:
    """What a command has printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Notify:
    """The command with an environment and a configuration of its own."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NOTIFY_")}
        return {**inherited, "XDG_CONFIG_HOME": str(self.folder), **self.variables}

    def run(self, *arguments: object, stdin: str = "") -> Printed:
        """Run it in this process."""
        absent = {name: None for name in os.environ if name.startswith("NOTIFY_")}
        result = CliRunner().invoke(
            app,
            [str(each) for each in arguments],
            input=stdin,
            env={**absent, **self.environment()},
            prog_name="notify",
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Printed(result.exit_code, result.stdout, result.stderr)

    async def __call__(self, *arguments: object, stdin: str = "") -> Printed:
        """Run it in a thread, because the gateway runs in this one."""
        return await asyncio.to_thread(self.run, *arguments, stdin=stdin)

    async def start(self, *arguments: object) -> asyncio.subprocess.Process:
        """Start it as a process."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "notify_client.cli", *map(str, arguments),
            env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


async def printed_line(process: asyncio.subprocess.Process) -> str:
    """Return the next line that the process prints; fail if none arrives."""
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        return (await process.stdout.readline()).decode()
