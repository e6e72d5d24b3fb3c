"""The outcome file: what has become of each row, appended as it happens and read when an import continues."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from notify_client.cli.exit_codes import CommandFailed, ExitCode
from notify_client.cli.output import one_line

COLUMNS = ("line", "outcome", "notification_id", "detail", "at")
KEYS_LIVE = timedelta(hours=23)  # the gateway remembers idempotency keys for 24 hours


class Outcome(StrEnum):
    """The values of the column `outcome`. The first two are about the whole import, and have no line."""

    STARTED = "started"
    ENDED = "ended"
    """All rows have an outcome."""
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    """The next run sends it again, because the reason may have been outside the file."""
    UNKNOWN = "unknown"
    """The gateway may have accepted it. The next run sends it again, with the same idempotency key."""


@dataclass
class Progress:
    """The content of an outcome file."""

    accepted: set[int] = field(default_factory=set)
    """Lines."""
    source: str | None = None
    """The file and the gateway that the import is about."""
    unknown: dict[int, datetime] = field(default_factory=dict)
    unfinished_since: datetime | None = None
    """The start of the first run since the last one that came to the end."""

    def add(self, row: dict[str, str]) -> None:
        """Add a row of the file."""
        outcome, at = Outcome(row["outcome"]), datetime.fromisoformat(row["at"])
        if outcome is Outcome.STARTED:
            self.source = row["detail"]
            self.unfinished_since = self.unfinished_since or at
        elif outcome is Outcome.ENDED:
            self.unfinished_since = None
        else:
            line = int(row["line"])
            self.unknown.pop(line, None)
            if outcome is Outcome.ACCEPTED:
                self.accepted.add(line)
            elif outcome is Outcome.UNKNOWN:
                self.unknown[line] = at

    def may_be_duplicated(self, rows: int, now: datetime) -> bool:
        """Return whether sending the rest may repeat a row whose idempotency key the gateway has forgotten."""
        doubtful = list(self.unknown.values())
        if self.unfinished_since is not None and len(self.accepted) < rows:
            doubtful.append(self.unfinished_since)
        return bool(doubtful) and now - min(doubtful) > KEYS_LIVE


class OutcomeFile:
    """An outcome file that is being appended. A row is in the file before `record` returns."""

    def __init__(self, path: Path, source: str) -> None:
        try:
            self._drop_torn_line(path)
            self._file = path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise CommandFailed(f"{path}: {error.strerror}", ExitCode.USAGE) from None
        if not path.stat().st_size:
            self._append(COLUMNS)
        self.record(None, Outcome.STARTED, detail=source)

    def record(self, line: int | None, outcome: Outcome, *, notification_id: object = "", detail: str = "") -> None:
        """Append an outcome."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._append(("" if line is None else line, outcome.value, notification_id, one_line(detail), at))

    def close(self) -> None:
        """Write everything to the disk."""
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            raise CommandFailed(f"{self._file.name}: {error.strerror}", ExitCode.FAILED) from None

    def _append(self, cells: tuple[object, ...]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        try:
            self._file.write(line.getvalue())
            self._file.flush()  # a killed process loses nothing that the kernel has
        except OSError as error:  # such as a full disk
            raise CommandFailed(f"{self._file.name}: {error.strerror}", ExitCode.FAILED) from None

    @staticmethod
    def _drop_torn_line(path: Path) -> None:
        """Remove the end of the last line if the disk was full when it was written."""
        if not path.exists():
            return
        with path.open("r+b") as content:
            content.seek(max(0, path.stat().st_size - (1 << 16)))
            start, tail = content.tell(), content.read()
            if tail and not tail.endswith(b"\n"):
                content.truncate(start + tail.rfind(b"\n") + 1)


def read_progress(path: Path) -> Progress:
    """Return what the file says; nothing if it does not exist."""
    progress = Progress()
    try:
        for row in _read(path):
            progress.add(row)
    except (ValueError, TypeError, csv.Error):
        raise CommandFailed(f"{path} is not an outcome file", ExitCode.USAGE) from None
    return progress


def accepted_ids(path: Path) -> Iterator[str]:
    """Yield the ids of the accepted notifications."""
    return (row["notification_id"] for row in _read(path) if row["outcome"] == Outcome.ACCEPTED)


def _read(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            complete = (line for line in lines if line.endswith("\n"))
            reader = csv.DictReader(complete)
            if tuple(reader.fieldnames or COLUMNS) != COLUMNS:
                raise CommandFailed(f"{path} is not an outcome file", ExitCode.USAGE)
            yield from reader
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", ExitCode.USAGE) from None
