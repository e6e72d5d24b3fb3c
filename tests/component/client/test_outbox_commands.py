"""`notify outbox` on a database in a file."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from notify_client import outbox
from notify_client.cli.commands.outbox import app
from notify_client.outbox.table import database_time, table
from sqlalchemy import Engine, create_engine, func, select, update
from sqlalchemy.orm import Session
from support.client import FailingServer, Reply
from support.services import TIMEOUT, eventually
from typer.testing import CliRunner

CREATED = Reply(
    201,
    b'{"id": "01a21794-3cc1-7d57-8220-d2098ea77790", "status": "pending", "created_at": "2026-11-26T11:18:40Z",'
    b' "deliveries": []}',
)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/business.db"
    monkeypatch.setenv("NOTIFY_OUTBOX_URL", url)
    monkeypatch.setenv("NO_COLOR", "1")
    return url


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


def enqueue(engine: Engine, *, hold: bool = False) -> UUID:
    with Session(engine) as session:
        key = outbox.enqueue(session, user_id="1", channels=["email"], message="private", reference="order-1")
        session.flush()
        if hold:
            now = database_time(session.connection())
            session.execute(update(table).values(held_at=now, error="refused", first_attempt_at=now, attempts=1))
        session.commit()
    return key


def test_held_rows_are_listed_released_and_dropped(url: str) -> None:
    call("create-table")
    assert "No notifications are held" in call("list")
    engine = create_engine(url)
    released, dropped = enqueue(engine, hold=True), enqueue(engine, hold=True)
    listed = call("list")
    assert f"{released}" in listed
    assert "order-1, may have been sent" in listed
    assert "private" not in listed
    [first, _] = json.loads(call("list", "--json"))
    assert (first["id"], first["reference"], first["maybe_sent"], first["error"]) == (
        str(released), "order-1", True, "refused",
    )  # fmt: skip
    assert json.loads(call("release", released, "--json")) == {"released": 1}
    assert "1 dropped" in call("drop", "--all")
    with engine.connect() as connection:
        assert [row.id for row in connection.execute(select(table))] == [released]
    assert str(dropped) not in call("list")
    engine.dispose()


def test_mistakes_have_exit_codes(url: str, tmp_path: Path) -> None:
    assert "no such table" in call("list", code=1)
    call("create-table")
    assert "not held" in call("release", uuid4(), code=1)
    call("release", code=2)
    call("drop", "--all", uuid4(), code=2)
    call("list", "--database", "nonsense", code=2)
    assert url.endswith(f"{tmp_path}/business.db")


def test_relay_without_a_gateway_is_a_mistake(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_URL", raising=False)
    assert "NOTIFY_URL" in call("run", "--database", url, code=2)


async def test_relay_runs_until_sigterm(url: str) -> None:
    engine = create_engine(url)
    outbox.create_table(engine)
    key = enqueue(engine)
    server = FailingServer(CREATED)
    async with server.serving() as gateway:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "notify_client.outbox", "run",
            env={**os.environ, "NOTIFY_URL": gateway}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

        async def is_sent() -> bool:
            with engine.connect() as connection:
                return not connection.execute(select(func.count()).select_from(table)).scalar()

        try:
            await eventually(is_sent, "the notification is sent")
        finally:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(TIMEOUT):
                _, errors = await process.communicate()
    engine.dispose()
    assert process.returncode == 0, errors
    assert [each.headers["idempotency-key"] for each in server.requests] == [str(key)]
    assert b"private" not in errors
