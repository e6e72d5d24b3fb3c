"""`notify outbox` on a database in a file."""

import asyncio
import signal
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from notify_client import outbox
from notify_client.cli.exit_codes import ExitCode
from notify_client.cli.profiles import Profile, write
from notify_client.outbox.table import database_time, table
from sqlalchemy import Engine, create_engine, func, select, update
from sqlalchemy.orm import Session
from support.cli import Notify, Printed
from support.client import FailingServer, Reply
from support.services import TIMEOUT, eventually

CREATED = Reply(
    201,
    b'{"id": "01a21794-3cc1-7d57-8220-d2098ea77790", "status": "pending", "created_at": "2026-11-26T11:18:40Z",'
    b' "deliveries": []}',
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/business.db"


@pytest.fixture
def notify(url: str, tmp_path: Path) -> Notify:
    return Notify(tmp_path, {"NOTIFY_OUTBOX_URL": url})


def call(notify: Notify, *arguments: object, code: ExitCode = ExitCode.OK) -> Printed:
    printed = notify.run("outbox", *arguments)
    assert printed.code == code, printed.stderr
    if code is not ExitCode.OK:
        [line] = printed.stderr.splitlines()
        assert line.startswith("notify: ")
    return printed


def enqueue(engine: Engine, *, hold: bool = False, error: str = "refused") -> UUID:
    with Session(engine) as session:
        key = outbox.enqueue(session, user_id="1", channels=["email"], message="private", reference="order-1")
        session.flush()
        if hold:
            now = database_time(session.connection())
            session.execute(update(table).values(held_at=now, error=error, first_attempt_at=now, attempts=1))
        session.commit()
    return key


def test_held_rows_are_listed_released_and_dropped(url: str, notify: Notify) -> None:
    call(notify, "create-table")
    assert "No notifications are held" in call(notify, "list").stderr
    engine = create_engine(url)
    released, dropped = enqueue(engine, hold=True), enqueue(engine, hold=True)
    listed = call(notify, "list").stdout
    assert f"{released}" in listed
    assert "order-1  may have been sent" in listed
    assert "private" not in listed
    [first, _] = call(notify, "list", "--json").json
    assert (first["id"], first["reference"], first["maybe_sent"], first["error"]) == (
        str(released), "order-1", True, "refused",
    )  # fmt: skip
    assert call(notify, "release", released, "--json").json == {"released": 1}
    assert "1 dropped" in call(notify, "drop", "--all").stdout
    with engine.connect() as connection:
        assert [row.id for row in connection.execute(select(table))] == [released]
    assert str(dropped) not in call(notify, "list").stdout
    engine.dispose()


def test_errors_of_held_rows_cannot_command_the_terminal(url: str, notify: Notify) -> None:
    assert call(notify, "create-table", "--json").json == {}
    engine = create_engine(url)
    enqueue(engine, hold=True, error="\x1b]0;title\x07 a\nb")
    engine.dispose()
    assert call(notify, "list").stdout.splitlines()[1] == "    ]0;title  a b"
    assert call(notify, "list", "--json").json[0]["error"] == "\x1b]0;title\x07 a\nb"


def test_mistakes_have_exit_codes(notify: Notify) -> None:
    for command in (["list"], ["release", "--all"], ["drop", "--all"]):
        assert "notify outbox create-table" in call(notify, *command, code=ExitCode.UNAVAILABLE).stderr
    call(notify, "create-table")
    assert "not held" in call(notify, "release", uuid4(), code=ExitCode.NOT_FOUND).stderr
    call(notify, "release", code=ExitCode.USAGE)
    call(notify, "drop", "--all", uuid4(), code=ExitCode.USAGE)


@pytest.mark.parametrize(
    "database",
    ["nonsense:secret", "postgresql://u:secret@h:port/d", "postgresql+nope://u:secret@h/d", "sqlite+nope://u:secret@h"],
)
def test_database_that_cannot_be_used_is_a_mistake_and_its_password_is_not_printed(
    database: str, notify: Notify
) -> None:
    printed = call(notify, "list", "--database", database, code=ExitCode.USAGE)
    assert "--database" in printed.stderr
    assert "secret" not in printed.stderr


@pytest.mark.parametrize(
    ("database", "module", "package"),
    [
        ("postgresql+psycopg://u:secret@h/d", "psycopg", "'psycopg[binary]'"),
        ("postgresql+psycopg2://u:secret@h/d", "psycopg2", "psycopg2-binary"),
        ("postgresql+asyncpg://u:secret@h/d", "asyncpg", "asyncpg"),
        ("mysql://u:secret@h/d", "MySQLdb", "mysqlclient"),
    ],
)
def test_missing_driver_is_named_as_a_package(
    database: str, module: str, package: str, notify: Notify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    printed = call(notify, "list", "--database", database, code=ExitCode.USAGE)
    assert f"pip install {package} " in printed.stderr


def test_relay_without_a_gateway_is_a_mistake(notify: Notify) -> None:
    assert "NOTIFY_URL" in call(notify, "run", code=ExitCode.USAGE).stderr


@pytest.mark.parametrize("module", ["cli", "outbox"])
async def test_relay_sends_to_the_gateway_of_the_profile_until_sigterm(
    module: str, url: str, notify: Notify, tmp_path: Path
) -> None:
    engine = create_engine(url)
    outbox.create_table(engine)
    key = enqueue(engine)
    server = FailingServer(CREATED)
    async with server.serving() as gateway:
        write(tmp_path / "notify/config.toml", {"production": Profile(gateway, "ntf_production")})
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"notify_client.{module}", *(["outbox"] if module == "cli" else []), "run",
            "--profile", "production", env=notify.environment(), stderr=asyncio.subprocess.PIPE,
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
    [request] = server.requests
    assert (request.headers["idempotency-key"], request.headers["authorization"]) == (str(key), "Bearer ntf_production")
    assert b"private" not in errors
    assert b"ntf_production" not in errors
