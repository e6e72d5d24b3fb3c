"""The command `notify` against a real gateway."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from notify_client.cli.exit_codes import ExitCode
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.errors import PermanentFailure
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import ApiKeyStore
from sqlalchemy.ext.asyncio import AsyncEngine
from support.cli import Notify, printed_line
from support.client import HANG, FailingServer, Reply
from support.fakes import FakeProvider
from support.gateway import bootstrap_key
from support.services import NOWHERE, TIMEOUT, running_sender, running_status_writer, served_gateway

KEY = bootstrap_key(1)


@pytest.fixture
async def notify(postgres: PostgresSettings, engine: AsyncEngine, tmp_path: Path) -> AsyncIterator[Notify]:
    """Yield the command, with a key of a gateway that never publishes."""
    await ApiKeyStore(engine).ensure_bootstrap_key(KEY)
    async with served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url:
        yield Notify(tmp_path, {"NOTIFY_URL": str(url), "NOTIFY_API_KEY": KEY})


async def reject(request: DeliveryRequested) -> str:
    if request.content.message.startswith("reject"):
        raise PermanentFailure("blocked", "no such \x1b[31muser")
    return "sent"


@pytest.fixture
async def delivering(rabbit: RabbitSettings, postgres: PostgresSettings, tmp_path: Path) -> AsyncIterator[Notify]:
    """Yield the command for a whole system, whose e-mails fail if they begin with "reject"."""
    async with (
        running_sender(rabbit, FakeProvider(reject), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        yield Notify(tmp_path, {"NOTIFY_URL": str(url)})


async def test_notification_is_sent_shown_listed_and_cancelled(notify: Notify) -> None:
    sent = await notify(
        "send", "--user", "ü 1", "--channel", "email", "--channel", "telegram", "--subject", "Hi",
        "--to", "email=a@example.org", "--reference", "order-5512", "--metadata", "order=5512", "--send-at", "2h",
        "--expires-at", "3h", "--idempotency-key", "k", "-", stdin="Your order\nhas left.",
    )  # fmt: skip
    assert sent.code == 0
    assert f"notify get --watch {sent.stdout.strip()}" in sent.stderr
    shown = (await notify("get", sent.stdout.strip(), "--json")).json
    assert (shown["user_id"], shown["message"], shown["subject"]) == ("ü 1", "Your order\nhas left.", "Hi")
    assert shown["metadata"] == {"order": "5512"}
    assert {each["channel"]: each.get("recipient") for each in shown["deliveries"]} == {
        "email": "a@example.org", "telegram": None,
    }  # fmt: skip
    again = await notify("send", "--user", "2", "--channel", "email", "--idempotency-key", "k", "other")
    assert again.code == ExitCode.USAGE
    listed = await notify("list", "--user", "ü 1", "--status", "pending", "--since", "1h", "--metadata", "order=5512")
    assert [line.split()[2] for line in listed.stdout.splitlines()[1:]] == [shown["id"]]
    assert [each["id"] for each in (await notify("list", "--json", "--limit", "1")).json] == [shown["id"]]
    facts = dict(line.split(maxsplit=1) for line in (await notify("get", shown["id"])).stdout.splitlines()[:8])
    assert (facts["subject"], facts["message"], facts["reference"]) == ("Hi", "Your order has left.", "order-5512")
    assert "expires" in facts
    cancelled = await notify("cancel", shown["id"])
    assert cancelled.code == 0
    assert "cancelled  requested" in cancelled.stdout
    assert (await notify("cancel", shown["id"], "--json")).json["status"] == "cancelled"


async def test_empty_list_says_so(notify: Notify) -> None:
    for command in (["list"], ["failures"], ["users", "get", "1"]):
        printed = await notify(*command)
        assert (printed.code, printed.stdout) == (0, "")
        assert printed.stderr.startswith("None"), command
        assert (await notify(*command, "--json")).json == []


async def test_lines_in_pipes_have_no_trailing_spaces(notify: Notify) -> None:
    sent = (await notify("send", "--user", "1", "--channel", "email", "--channel", "telegram", "m")).stdout.strip()
    await notify("send", "--user", "1", "--channel", "email", "m")
    for command in (["list"], ["get", sent], ["keys", "list"]):
        lines = (await notify(*command)).stdout.splitlines()
        assert lines == [line.rstrip() for line in lines], command


async def test_errors_have_exit_codes(notify: Notify) -> None:
    invalid = await notify("send", "--user", "1", "--channel", "pigeon", " ")
    assert (invalid.code, invalid.stdout) == (ExitCode.USAGE, "")
    assert invalid.stderr.startswith("notify: channels.0: ")
    assert "; message: must not be blank\n" in invalid.stderr
    missing = await notify("get", uuid4(), "--json")
    assert (missing.code, missing.stdout, missing.stderr.count("\n")) == (ExitCode.NOT_FOUND, "", 1)
    assert (await notify("get", uuid4(), "--watch")).code == ExitCode.NOT_FOUND
    stranger = Notify(notify.folder, {**notify.variables, "NOTIFY_API_KEY": "ntf_unknown"})
    assert (await stranger("list")).code == ExitCode.DENIED
    assert (await stranger("tail")).code == ExitCode.DENIED


async def test_failed_gateway_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    server = FailingServer(Reply(503, b"<html>"))
    async with server.serving() as url:
        printed = await Notify(tmp_path, {"NOTIFY_URL": url})("list")
    assert (printed.code, printed.stderr.count("\n")) == (ExitCode.UNAVAILABLE, 1)
    assert "503" in printed.stderr


async def test_users_are_stored_shown_and_deleted(notify: Notify) -> None:
    assert (await notify("users", "set", "1", "email", "--recipient", "a@example.org")).code == 0
    stored = (await notify("users", "set", "1", "email", "--opt-out", "--json")).json
    assert (stored["recipient"], stored["opted_out"]) == ("a@example.org", True)
    assert (await notify("users", "get", "1")).stdout.splitlines()[1].split()[:3] == ["email", "a@example.org", "yes"]
    assert (await notify("users", "delete", "1", "email")).code == 0
    assert "recipient" not in (await notify("users", "get", "1", "--json")).json[0]
    assert (await notify("users", "delete", "1", "email")).code == ExitCode.NOT_FOUND


async def test_keys_are_created_listed_and_revoked(notify: Notify) -> None:
    created = await notify("keys", "create", "--name", "checkout", "--scope", "send", "--expires-at", "90d")
    assert created.stdout.startswith("ntf_")
    listed = {each["name"]: each for each in (await notify("keys", "list", "--json")).json}
    assert listed["checkout"]["scopes"] == ["send"]
    limited = Notify(notify.folder, {**notify.variables, "NOTIFY_API_KEY": created.stdout.strip()})
    denied = await limited("keys", "list")
    assert (denied.code, created.stdout.strip() in denied.stderr) == (ExitCode.DENIED, False)
    assert (await notify("keys", "revoke", listed["checkout"]["id"])).code == 0
    assert "revoked" in (await notify("keys", "list")).stdout


async def test_login_stores_only_a_key_that_works(notify: Notify) -> None:
    url = notify.variables["NOTIFY_URL"]
    plain = Notify(notify.folder)
    refused = await plain("login", "--url", url, "--api-key-stdin", stdin="ntf_unknown\n")
    assert refused.code == ExitCode.DENIED
    file = notify.folder / "notify/config.toml"
    assert not file.exists()
    stored = await plain("login", "--url", f"{url}/", "--api-key-stdin", "--profile", "work", stdin=f"{KEY}\n")
    assert (stored.code, KEY in stored.stdout + stored.stderr) == (0, False)
    assert file.stat().st_mode & 0o777 == 0o600
    assert (await plain("list")).code == ExitCode.USAGE
    assert (await plain("list", "--profile", "work", "--json")).json == []
    assert (await Notify(notify.folder, {"NOTIFY_PROFILE": "work"})("list", "--json")).json == []


async def test_outcome_is_waited_for(delivering: Notify) -> None:
    sent = await delivering("send", "--user", "1", "--channel", "email", "--wait", "m")
    assert sent.code == 0
    assert sent.stdout.rstrip().endswith("final  sent")
    failed = await delivering("send", "--user", "1", "--channel", "email", "--wait", "reject")
    assert failed.code == ExitCode.FAILED
    assert "failed  permanent blocked" in failed.stdout
    assert "\x1b" not in failed.stdout
    later = await delivering("send", "--user", "1", "--channel", "email", "--send-at", "1h", "--wait",
                             "--timeout", "0", "m")  # fmt: skip
    assert later.code == ExitCode.TIMED_OUT
    finished = (await delivering("list", "--status", "sent", "--json")).json[0]["id"]
    conflict = await delivering("cancel", finished)
    assert (conflict.code, "email sent" in conflict.stderr) == (ExitCode.CONFLICT, True)


async def test_interrupted_wait_says_that_the_notification_stays_accepted(tmp_path: Path) -> None:
    created = b'{"id": "%s", "status": "pending", "created_at": "2026-11-26T11:18:40Z", "deliveries": []}'
    notification_id = str(uuid4())
    server = FailingServer(Reply(201, created % notification_id.encode()), HANG)
    async with server.serving() as url:
        process = await Notify(tmp_path, {"NOTIFY_URL": url}).start(
            "send", "--user", "1", "--channel", "email", "--wait", "m"
        )
        assert process.stderr is not None
        async with asyncio.timeout(TIMEOUT):
            assert await process.stderr.readline() == f"Accepted {notification_id}.\n".encode()
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert errors.decode() == (
        f"notify: interrupted: {notification_id} stays accepted; follow it: notify get --watch {notification_id}\n"
    )


async def test_failures_are_listed_and_retried(delivering: Notify) -> None:
    for number in range(2):
        await delivering("send", "--user", number, "--channel", "email", "--wait", f"reject {number}")
    listed = await delivering("failures", "--channel", "email", "--since", "1h")
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    assert [row[2:6] for row in rows] == [["email", "permanent", "blocked", str(number)] for number in (1, 0)]
    one = await delivering("retry", rows[0][-1], "--json")
    assert (one.json["round"], one.json["status"]) == (2, "pending")
    watched = await delivering("get", "--watch", one.json["notification_id"])
    assert watched.code == ExitCode.FAILED
    many = ("retry", "--status", "failed", "--channel", "email", "--error-class", "permanent")
    assert (await delivering(*many, "--dry-run")).stdout == "2 failed deliveries match.\n"
    assert (await delivering(*many, "--dry-run", "--json")).json == {"count": 2}
    unconfirmed = await delivering(*many)
    assert (unconfirmed.code, "--yes" in unconfirmed.stderr) == (ExitCode.USAGE, True)
    assert (await delivering("retry", "--status", "failed", "--channel", "telegram")).stdout.startswith("0 failed")
    assert (await delivering(*many, "--yes", "--wait", "--json")).json["retried"] == 2


async def test_watch_prints_each_state_and_ends_when_final(
    rabbit: RabbitSettings, postgres: PostgresSettings, tmp_path: Path
) -> None:
    released = asyncio.Event()

    async def answer(_request: DeliveryRequested) -> str:
        await released.wait()
        return "sent"

    async with (
        running_sender(rabbit, FakeProvider(answer), provider_timeout=TIMEOUT),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        notify = Notify(tmp_path, {"NOTIFY_URL": str(url)})
        sent = await notify("send", "--user", "1", "--channel", "telegram", "m")
        process = await notify.start("get", "--watch", "--json", sent.stdout.strip())
        assert json.loads(await printed_line(process))["status"] == "pending"
        released.set()
        assert json.loads(await printed_line(process))["status"] == "sent"
        async with asyncio.timeout(TIMEOUT):
            assert await process.wait() == 0


async def test_tail_prints_matching_events(delivering: Notify) -> None:
    process = await delivering.start("tail", "--user", "7", "--status", "failed", "--count", "1", "--json")
    assert process.stderr is not None
    async with asyncio.timeout(TIMEOUT):
        assert (await process.stderr.readline()).startswith(b"Waiting for events")
    for user, message in (("8", "reject"), ("7", "m"), ("7", "reject")):
        await delivering("send", "--user", user, "--channel", "email", message)
    event = json.loads(await printed_line(process))
    assert (event["user_id"], event["status"], event["error_code"]) == ("7", "failed", "blocked")
    async with asyncio.timeout(TIMEOUT):
        assert await process.wait() == 0
