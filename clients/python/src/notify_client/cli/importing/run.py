"""Send the rows, a bounded number at a time."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from notify_client import (
    AsyncClient,
    AuthenticationFailed,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    NotifyError,
    PermissionDenied,
    RateLimited,
    Unavailable,
)
from notify_client.cli.exit_codes import describe
from notify_client.cli.importing.outcomes import Outcome, OutcomeFile
from notify_client.cli.importing.parallel import in_parallel
from notify_client.cli.importing.rows import InvalidRow, Row

REJECTED = (InvalidRequest, NotFound, Conflict)
STOPPED = (AuthenticationFailed, PermissionDenied, ConnectionFailed, Unavailable, RateLimited)
"""All other rows would fail in the same way."""


@dataclass
class ImportRun:
    """One run of an import, and what it has achieved."""

    client: AsyncClient
    outcomes: OutcomeFile
    key: Callable[[Row], str]
    changed: Callable[[], None]
    """Called after each row."""
    accepted: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    unknown: list[tuple[int, str]] = field(default_factory=list)
    stopped_by: NotifyError | None = None

    async def send_all(self, rows: Iterator[Row], concurrency: int) -> None:
        """Send the rows, until all have been sent or an error concerns all of them."""
        await in_parallel(concurrency, lambda: self._send_some(rows))
        if self.stopped_by is None:
            self.outcomes.record(None, Outcome.ENDED)

    async def _send_some(self, rows: Iterator[Row]) -> None:
        for row in rows:  # all tasks share the iterator
            await self._send(row)
            self.changed()
            if self.stopped_by is not None:
                return

    async def _send(self, row: Row) -> None:
        try:
            created = await self.client.send(row.request(self.key(row)))
        except InvalidRow as error:
            self._reject(row, str(error))
        except REJECTED as error:
            self._reject(row, describe(error))
        except NotifyError as error:
            self._fail(row, error)
        else:
            self.accepted += 1
            self.outcomes.record(row.line, Outcome.ACCEPTED, notification_id=created.id)

    def _reject(self, row: Row, reason: str) -> None:
        self.rejected.append((row.line, reason))
        self.outcomes.record(row.line, Outcome.REJECTED, detail=reason)

    def _fail(self, row: Row, error: NotifyError) -> None:
        if isinstance(error, STOPPED):
            self.stopped_by = self.stopped_by or error
        self.unknown.append((row.line, describe(error)))
        self.outcomes.record(row.line, Outcome.UNKNOWN, detail=describe(error))


def key_function(digest: str, run_name: str) -> Callable[[Row], str]:
    """Return a function from rows to idempotency keys: the same for the same file, run and line, and no others."""

    def key(row: Row) -> str:
        return "import-" + hashlib.sha256(f"{digest} {row.line} {run_name}".encode()).hexdigest()

    return key
