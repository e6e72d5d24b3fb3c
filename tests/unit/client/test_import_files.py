"""The files of `notify import`: rows and outcomes."""

import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from notify_client.cli.exit_codes import CommandFailed
from notify_client.cli.importing.outcomes import Outcome, OutcomeFile, Progress, accepted_ids, read_progress
from notify_client.cli.importing.rows import InvalidRow, Row, open_csv
from notify_client.cli.importing.run import key_function

HEADER = "user_id,channels,message"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def body(row: Row) -> object:
    return row.request("key").body


def test_rows_become_requests(file: Path) -> None:
    file.write_text(
        f"\ufeff{HEADER},subject,email,reference,metadata.order,send_at\n"
        ' ü 1 ,email;telegram,"two\nlines",Hi, a@example.org ,order-1,5512,2026-12-24T18:00+01:00\n'
        "2,email,m,,,,,\n"
    )
    csv = open_csv(file)
    first, second = csv.read()
    assert (csv.rows, first.line, second.line) == (2, 3, 4)
    assert body(first) == {
        "user_id": "ü 1", "channels": ["email", "telegram"], "message": "two\nlines", "subject": "Hi",
        "to": {"email": "a@example.org"}, "reference": "order-1", "metadata": {"order": "5512"},
        "send_at": datetime(2026, 12, 24, 17, tzinfo=UTC),
    }  # fmt: skip
    assert body(second) == {"user_id": "2", "channels": ["email"], "message": "m"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"user_id,message\n", "missing columns: channels$"),
        (b"user_id,chanels,message,name\n", "missing columns: channels; unknown columns: chanels, name$"),
        (b"user_id,channels,message,emial\n", "unknown columns: emial"),
        (b"user_id,channels,message,email,email\n", "same name"),
        (b"", "missing columns: user_id, channels, message"),
    ],
)
def test_files_with_other_columns_are_refused(content: bytes, problem: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(CommandFailed, match=problem):
        open_csv(file)


def test_ignored_column_is_not_sent(file: Path) -> None:
    file.write_text(f"{HEADER},name\n1,email,m,Ann\n")
    [row] = open_csv(file, frozenset({"name"})).read()
    assert body(row) == {"user_id": "1", "channels": ["email"], "message": "m"}


@pytest.mark.parametrize(
    ("cells", "problem"),
    [(b"1,email,caf\xe9", "UTF-8"), (b"1,email,m,,more", "more cells"), (b"1,email,m,soon", "send_at")],
)
def test_invalid_rows_are_rejected_alone(cells: bytes, problem: str, file: Path) -> None:
    file.write_bytes(f"{HEADER},send_at\n".encode() + cells + b"\n2,email,m,\n")
    bad, good = open_csv(file).read()
    with pytest.raises(InvalidRow, match=problem):
        bad.request("key")
    assert good.request("key").idempotency_key == "key"


def test_keys_are_the_same_only_for_the_same_row_of_the_same_run() -> None:
    keys = [
        key_function(digest, run)(Row(line, {})) for digest in ("a", "b") for run in ("", "second") for line in (2, 3)
    ]
    assert len(set(keys)) == len(keys)
    assert key_function("a", "")(Row(2, {})) == keys[0]


def test_outcomes_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "outcome.csv"
    for _ in range(2):
        outcomes = OutcomeFile(path, "source")
        outcomes.record(2, Outcome.ACCEPTED, notification_id="id-2")
        outcomes.record(3, Outcome.UNKNOWN, detail='no "response",\nlost')
        outcomes.close()
    with path.open("a") as content:
        content.write("4,accepted,id-4,,2026-11")  # the disk was full
    assert list(accepted_ids(path)) == ["id-2", "id-2"]
    progress = read_progress(path)
    assert (progress.accepted, progress.source, set(progress.unknown)) == ({2}, "source", {3})
    outcomes = OutcomeFile(path, "source")
    outcomes.record(3, Outcome.ACCEPTED, notification_id="id-3")
    outcomes.record(None, Outcome.ENDED)
    outcomes.close()
    progress = read_progress(path)
    assert (progress.accepted, progress.unknown, progress.unfinished_since) == ({2, 3}, {}, None)


@pytest.mark.parametrize("content", [f"{HEADER}\n", "line,outcome,notification_id,detail,at\n2,perhaps,,,\n"])
def test_other_files_are_not_taken_for_outcomes(content: str, file: Path) -> None:
    file.write_text(content)
    with pytest.raises(CommandFailed, match="not an outcome file"):
        read_progress(file)


def test_failed_write_is_an_error_and_its_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "outcome.csv"
    outcomes = OutcomeFile(path, "source")
    outcomes.record(2, Outcome.ACCEPTED, notification_id="id-2")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))  # like a disk that is almost full
    try:
        with pytest.raises(CommandFailed, match="File too large"):
            outcomes.record(3, Outcome.ACCEPTED, notification_id="id-3")
        with pytest.raises(CommandFailed):
            outcomes.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.read_text().endswith("\n")
    assert read_progress(path).accepted == {2}
    OutcomeFile(path, "source").close()
    assert [line.count(",") for line in path.read_text().splitlines()] == [4] * 4


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress(), False),
        (Progress(unfinished_since=NOW - timedelta(hours=22)), False),
        (Progress(unfinished_since=NOW - timedelta(hours=24)), True),
        (Progress(unfinished_since=NOW - timedelta(hours=24), accepted={2, 3}), False),
        (Progress(unknown={2: NOW - timedelta(hours=24)}), True),
        (Progress(unknown={2: NOW}), False),
    ],
)
def test_interrupted_imports_are_safe_while_the_gateway_remembers_keys(progress: Progress, expected: bool) -> None:
    assert progress.may_be_duplicated(2, NOW) is expected
