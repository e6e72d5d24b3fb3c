"""`notify import` sends each row exactly once, however often it is interrupted."""

import asyncio
import csv
import signal
from collections import Counter
from pathlib import Path

import pytest
from notify_client.cli.exit_codes import ExitCode
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from sqlalchemy.ext.asyncio import AsyncEngine
from support.cli import Notify
from support.client import FORWARD, FORWARD_AND_HANG, FORWARD_AND_LOSE, FailingServer, Reply
from support.fakes import FakeProvider
from support.gateway import rows
from support.services import NOWHERE, TIMEOUT, running_sender, running_status_writer, served_gateway

CONCURRENCY = 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write 40 rows, each of which is there twice."""
    path = tmp_path / "rows.csv"
    path.write_text("user_id,channels,message\n" + "".join(f"{n % 20},email,message {n % 20}\n" for n in range(40)))
    return path


def outcomes(file: Path) -> Counter[tuple[str, str]]:
    """Count the rows of the outcome file by line and outcome."""
    with file.with_name(f"{file.name}.outcome.csv").open() as lines:
        return Counter((row["line"], row["outcome"]) for row in csv.DictReader(lines) if row["line"])


def append(file: Path, line: str) -> None:
    with file.open("a") as content:
        content.write(line)


async def messages(engine: AsyncEngine) -> Counter[str]:
    return Counter([row.message for row in await rows(engine, "SELECT message FROM notifications")])


ALL = Counter({f"message {n}": 2 for n in range(20)})


async def test_killed_import_continues_and_sends_each_row_once(
    postgres: PostgresSettings, engine: AsyncEngine, file: Path
) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(*[FORWARD] * 13, FORWARD_AND_HANG, gateway=gateway)
        async with server.serving() as url:
            notify = Notify(file.parent, {"NOTIFY_URL": url})
            command = ("import", file, "--concurrency", CONCURRENCY)
            first = await notify.start(*command)
            for _ in range(CONCURRENCY):  # the gateway has accepted these rows, but the import does not know
                await server.hanging.get()
            first.kill()
            await first.communicate()
            assert (await messages(engine)).total() == 13 + CONCURRENCY
            assert outcomes(file).total() == 13
            server.then(FORWARD)
            second = await notify(*command)
            assert (second.code, second.stdout) == (0, "40 of 40 rows are accepted (13 by earlier runs).\n")
            third = await notify(*command, "--json")
    assert third.json["accepted_before"] == 40
    assert outcomes(file) == Counter({(str(line), "accepted"): 1 for line in range(2, 42)})
    assert await messages(engine) == ALL


async def test_interrupted_import_says_how_far_it_came(
    postgres: PostgresSettings, engine: AsyncEngine, file: Path
) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(*[FORWARD] * 13, FORWARD_AND_HANG, gateway=gateway)
        async with server.serving() as url:
            notify = Notify(file.parent, {"NOTIFY_URL": url})
            first = await notify.start("import", file, "--concurrency", CONCURRENCY)
            for _ in range(CONCURRENCY):
                await server.hanging.get()
            first.send_signal(signal.SIGINT)
            async with asyncio.timeout(TIMEOUT):
                _, errors = await first.communicate()
            assert first.returncode == ExitCode.INTERRUPTED
            assert errors.decode().splitlines()[-1] == (
                "notify: interrupted: 13 of 40 rows are accepted; run the same command again to continue"
            )
            server.then(FORWARD)
            assert (await notify("import", file)).code == 0
    assert await messages(engine) == ALL


async def test_lost_responses_and_outages_do_not_repeat_rows(
    postgres: PostgresSettings, engine: AsyncEngine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(FORWARD, FORWARD_AND_LOSE, FORWARD, Reply(503), gateway=gateway)
        async with server.serving() as url:
            notify = Notify(file.parent, {"NOTIFY_URL": url})
            human = await notify("import", file, "--concurrency", CONCURRENCY)
            assert "Run the same command again to send the rest." in human.stderr
            assert "new file" not in human.stderr
            stopped = await notify("import", file, "--concurrency", CONCURRENCY, "--json")
            assert stopped.code == ExitCode.UNAVAILABLE
            assert 0 < stopped.json["unknown"] <= CONCURRENCY
            assert stopped.json["not_sent"] > 0
            server.then(FORWARD)
            assert (await notify("import", file)).code == 0
    assert await messages(engine) == ALL


async def test_rejected_rows_are_reported_and_tried_again(
    postgres: PostgresSettings, engine: AsyncEngine, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'user_id,channels,message\n1,email,"a\nb"\n2,pigeon,coo\n3,email,caf\xe9\n')
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        notify = Notify(tmp_path, {"NOTIFY_URL": str(url)})
        for before in ("", " (1 by earlier runs)"):
            printed = await notify("import", file)
            assert printed.code == ExitCode.FAILED
            first, second, third = printed.stdout.splitlines()
            assert first.startswith("line 4: channels.0: ")
            assert second == "line 5: is not UTF-8"
            assert third == f"1 of 3 rows are accepted{before}; 2 rows were rejected."
            assert "new file" in printed.stderr
            assert "the rest" not in printed.stderr
    assert await messages(engine) == Counter(["a\nb"])
    assert outcomes(file) == Counter({("3", "accepted"): 1, ("4", "rejected"): 2, ("5", "rejected"): 2})


async def test_changed_file_and_other_gateway_are_refused(
    postgres: PostgresSettings, engine: AsyncEngine, file: Path
) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        notify = Notify(file.parent, {"NOTIFY_URL": str(url)})
        assert (await notify("import", file)).code == 0
        other = Notify(file.parent, {"NOTIFY_URL": "http://127.0.0.1:1"})
        assert (await other("import", file)).code == ExitCode.USAGE
        assert (await notify("import", file, "--run", "second")).code == 0  # sends all rows again
        append(file, "1,email,new\n")
        refused = await notify("import", file)
    assert (refused.code, refused.stderr.count("\n")) == (ExitCode.USAGE, 1)
    assert await messages(engine) == ALL + ALL


async def test_wrong_key_stops_the_import_and_marks_nothing_as_rejected(postgres: PostgresSettings, file: Path) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url:
        notify = Notify(file.parent, {"NOTIFY_URL": str(url), "NOTIFY_API_KEY": "ntf_unknown"})
        printed = await notify("import", file, "--json")
    assert (printed.code, printed.json["rejected"], printed.json["accepted"]) == (ExitCode.DENIED, 0, 0)
    assert printed.json["not_sent"] >= 20


async def test_notifications_are_followed_to_the_end(
    rabbit: RabbitSettings, postgres: PostgresSettings, file: Path
) -> None:
    async with (
        running_sender(rabbit, FakeProvider(), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        notify = Notify(file.parent, {"NOTIFY_URL": str(url)})
        followed = await notify("import", file, "--wait")
        summary = await notify("import", file, "--wait", "--json")
    assert followed.code == 0
    assert followed.stdout.splitlines()[-1] == "40 of 40 notifications are final."
    assert "p95 s" in followed.stdout
    assert (summary.json["final"], summary.json["deliveries"]) == (40, {"email": {"sent": 40}})


async def test_outage_while_following_is_one_line(
    postgres: PostgresSettings, engine: AsyncEngine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(*[FORWARD] * 40, Reply(503), gateway=gateway)
        async with server.serving() as url:
            printed = await Notify(file.parent, {"NOTIFY_URL": url})("import", file, "--wait")
    assert (printed.code, printed.stdout) == (ExitCode.UNAVAILABLE, "")
    assert "503" in printed.stderr.splitlines()[-1]
    assert await messages(engine) == ALL
