"""The rows of a CSV file as notifications."""

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from notify_client.cli.exit_codes import CommandFailed, ExitCode
from notify_client.models import CreatedNotification
from notify_client.requests import Request
from notify_client.resources.notifications import Recipients, create_notification

REQUIRED = ("user_id", "channels", "message")
OPTIONAL = ("subject", "reference", "send_at", "expires_at")
RECIPIENTS = tuple(Recipients.__annotations__)  # a column per channel
METADATA = "metadata."
BLOCK = 1 << 20  # bytes


class InvalidRow(Exception):
    """The row cannot be sent. The message says why."""


@dataclass(frozen=True)
class CsvFile:
    """A CSV file that has the right columns."""

    path: Path
    digest: str
    """The SHA-256 of its content."""
    rows: int
    ignored: frozenset[str] = frozenset()

    def read(self) -> Iterator["Row"]:
        """Yield the rows."""
        return _rows(self.path)


@dataclass(frozen=True)
class Row:
    """A row, and the number of its last line in the file."""

    line: int
    cells: Mapping[str | None, str | list[str] | None]

    def request(self, idempotency_key: str) -> Request[CreatedNotification]:
        """Return the request to send it; raise `InvalidRow` if there is none. The gateway validates the values."""
        if None in self.cells:
            raise InvalidRow("it has more cells than the header")
        values = {str(name): str(value) for name, value in self.cells.items() if value}
        if any(not _is_unicode(value) for value in values.values()):
            raise InvalidRow("is not UTF-8")
        to = {channel: values[channel].strip() for channel in RECIPIENTS if values.get(channel, "").strip()}
        metadata = {name[len(METADATA) :]: value for name, value in values.items() if name.startswith(METADATA)}
        return create_notification(
            user_id=values.get("user_id", "").strip(),
            channels=values.get("channels", "").replace(";", " ").split(),
            message=values.get("message", ""),
            subject=values.get("subject"),
            to=cast("Recipients", to) or None,
            reference=values.get("reference"),
            metadata=metadata or None,
            send_at=_time("send_at", values),
            expires_at=_time("expires_at", values),
            idempotency_key=idempotency_key,
        )


def open_csv(path: Path, ignored: frozenset[str] = frozenset()) -> CsvFile:
    """Return the file; raise `CommandFailed` if it cannot be read or has other columns."""
    try:
        digest = hashlib.sha256()
        with path.open("rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            columns = csv.DictReader(lines).fieldnames or ()
        _check(path, list(columns), ignored)
        return CsvFile(path, digest.hexdigest(), sum(1 for _ in _rows(path)), ignored)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", ExitCode.USAGE) from None
    except csv.Error as error:
        raise CommandFailed(f"{path}: not a CSV file ({error})", ExitCode.USAGE) from None


def _check(path: Path, columns: list[str], ignored: frozenset[str]) -> None:
    known = {*REQUIRED, *OPTIONAL, *RECIPIENTS, *ignored}
    unknown = ", ".join(name for name in columns if name not in known and not name.startswith(METADATA))
    if missing := ", ".join(name for name in REQUIRED if name not in columns):
        misspelt = f"; unknown columns: {unknown}" if unknown else ""
        raise CommandFailed(f"{path}: missing columns: {missing}{misspelt}", ExitCode.USAGE)
    if len(set(columns)) < len(columns):
        raise CommandFailed(f"{path}: two columns have the same name", ExitCode.USAGE)
    if unknown:
        raise CommandFailed(f"{path}: unknown columns: {unknown} (--ignore skips one)", ExitCode.USAGE)


def _rows(path: Path) -> Iterator[Row]:
    # Bytes that are not valid UTF-8 become surrogates, so that only the rows that contain them are rejected.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines)
        for cells in reader:
            yield Row(reader.line_num, cells)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _time(name: str, values: Mapping[str, str]) -> datetime | None:
    if name not in values:
        return None
    try:
        return datetime.fromisoformat(values[name].strip()).astimezone()
    except (ValueError, OverflowError):
        raise InvalidRow(f"{name}: is not a time such as 2026-12-24T18:00:00+01:00") from None
