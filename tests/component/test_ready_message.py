"""What `make up` prints once it is ready."""

import asyncio
import os
import re
from pathlib import Path

from notify_database.engine import PostgresSettings
from notify_local.__main__ import ready_message
from notify_local.folder import StackFolder
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import rows
from support.servers import PROJECT
from support.services import NOWHERE, TIMEOUT, served_gateway


async def test_commands_under_try_it_send_notifications(
    postgres: PostgresSettings, engine: AsyncEngine, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOTIFY_")}
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        addresses = {"GATEWAY_URL": str(url).rstrip("/"), "RABBITMQ_MANAGEMENT_URL": "http://user:pass@127.0.0.1:1"}
        message = ready_message(StackFolder(tmp_path), addresses)
        commands = "\n".join(re.findall(r"^  (.*)", message.partition("Try it")[2], re.MULTILINE))
        process = await asyncio.create_subprocess_exec(
            "bash", "-ec", commands, cwd=PROJECT, env={**environment, "XDG_CONFIG_HOME": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(TIMEOUT):
            printed, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert re.search(rb"[0-9a-f-]{36}\n$", printed)
    assert [row.message for row in await rows(engine, "SELECT message FROM notifications")] == ["Your code: 11111"] * 2
