"""The demo, which sends a file of notifications through the API and follows each one until it is final."""

import asyncio
import csv
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from notify_common.contracts.channels import Channel
from notify_common.runtime.settings import load_settings
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from notify_local.console import CannotRun, console, say
from notify_local.folder import StackFolder
from notify_local.stack import GatewayOptions, running_system

# The optional columns are `subject` and one per channel, which has the channel's name and contains the recipient.
REQUIRED_COLUMNS = frozenset({"user_id", "channels", "message"})
MAX_CONCURRENT_REQUESTS = 50
TRY_AGAIN = {429, 503, 504}  # the statuses of reads that fail because PostgreSQL is unavailable or slow
MAX_TRIES = 10  # how many times a request is sent while the gateway answers 503
POLL_INTERVAL = 0.5  # seconds
PLAIN_LINE_INTERVAL = 2.0  # seconds between progress lines if the output is not a terminal
START_TIMEOUT = 180.0  # seconds
STALL_TIMEOUT = 600.0  # seconds without any notification becoming final
FINAL = frozenset({"sent", "failed", "expired", "cancelled"})

Json = dict[str, Any]


class DemoRun:
    """The progress of a demo, shown as live bars on a terminal and otherwise as a line every few seconds."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.bad_rows: list[tuple[int, str]] = []
        self.open_ids: set[str] = set()
        self.final: list[Json] = []
        self.display = Progress(
            TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._accepted_bar = self.display.add_task("accepted", total=rows)
        self._final_bar = self.display.add_task("final", total=rows)
        self._next_line = time.monotonic() + PLAIN_LINE_INTERVAL

    def show(self) -> None:
        """Update the display."""
        final = len(self.final)
        accepted = len(self.open_ids) + final
        self.display.update(self._accepted_bar, completed=accepted)
        self.display.update(self._final_bar, completed=final)
        if not console.is_terminal and time.monotonic() > self._next_line:
            say(f"accepted {accepted} of {self.rows}, final {final}")
            self._next_line = time.monotonic() + PLAIN_LINE_INTERVAL


async def run_demo(folder: StackFolder, file: Path) -> int:
    """Send the rows of `file` and print their outcomes; return 0 if every row reached a final state, else 1."""
    rows = list(_read(file))
    async with (
        _gateway(folder) as url,
        httpx.AsyncClient(base_url=url, headers=_authorization(), timeout=30, trust_env=False) as client,
    ):
        say(f"Sending {len(rows)} rows from {file} to {url}")
        run = DemoRun(len(rows))
        with run.display:
            await _send_all(client, rows, run)
            await _follow(client, run)
    for line, problem in sorted(run.bad_rows):
        say(f"line {line}: {problem}")
    console.print(_table(run.final))
    say(
        f"{len(run.final)} of {run.rows} notifications are final"
        + (f"; {len(run.bad_rows)} rows were rejected" if run.bad_rows else "")
        + (f"; {len(run.open_ids)} are still open" if run.open_ids else "")
        + "."
    )
    return 1 if run.bad_rows or run.open_ids else 0


def _authorization() -> dict[str, str]:
    """Return a header with the bootstrap API key, which the demo needs if AUTH=on, or no header if none is set."""
    key = load_settings(GatewayOptions).bootstrap_api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _read(file: Path) -> Iterator[tuple[int, Json]]:
    """Yield each row, preceded by the number of its last line in the file."""
    try:
        # Bytes that are not valid UTF-8 become surrogates, so that only the rows that contain them are rejected.
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.DictReader(lines)
            if missing := REQUIRED_COLUMNS - set(reader.fieldnames or ()):
                raise CannotRun(f"{file}: missing columns: {', '.join(sorted(missing))}")
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise CannotRun(f"{file}: {error.strerror}") from None
    except csv.Error as error:
        raise CannotRun(f"{file}: not a CSV file ({error})") from None


def _request(row: Json) -> Json:
    """Return the API request for a row. It is not validated here, because the gateway does that."""
    request: Json = {
        "user_id": (row["user_id"] or "").strip(),
        "channels": (row["channels"] or "").replace(";", " ").split(),
        "message": row["message"] or "",
    }
    if subject := row.get("subject"):
        request["subject"] = subject
    if recipient := {channel: row[channel] for channel in Channel if row.get(channel)}:
        request["to"] = recipient
    return request


@asynccontextmanager
async def _gateway(folder: StackFolder) -> AsyncIterator[str]:
    """Yield the URL of the running stack's gateway; if no stack is running, start one for the demo."""
    if not folder.is_locked():
        say("The system is not running; starting it for this demo (`make up` in another terminal keeps it running).")
        async with running_system(folder, show_logs=False) as stack:
            yield stack.addresses["GATEWAY_URL"]
        return
    deadline = time.monotonic() + START_TIMEOUT
    while not (addresses := folder.addresses()):
        if time.monotonic() > deadline:
            raise CannotRun("The system in this folder did not become ready.")
        await asyncio.sleep(POLL_INTERVAL)
    if "GATEWAY_URL" not in addresses:
        raise CannotRun("Only the servers are running in this folder; stop them and run this again.")
    yield addresses["GATEWAY_URL"]


async def _send_all(client: httpx.AsyncClient, rows: list[tuple[int, Json]], run: DemoRun) -> None:
    slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

    async def send(line: int, row: Json) -> None:
        async with slots:
            try:
                run.open_ids.add(await _post(client, _request(row)))
            except _RowRejected as rejection:
                run.bad_rows.append((line, str(rejection)))
        run.show()

    await asyncio.gather(*(send(line, row) for line, row in rows))


class _RowRejected(Exception):
    """The gateway did not confirm that it accepted the row. The message says why."""


async def _post(client: httpx.AsyncClient, request: Json) -> str:
    """Post the request, repeating it while the gateway answers 503, and return the notification's id."""
    for _ in range(MAX_TRIES):
        try:
            response = await client.post("/v1/notifications", json=request)
        except UnicodeEncodeError:
            raise _RowRejected("is not UTF-8") from None
        except httpx.TransportError as error:
            # The request is not repeated, because the gateway may have accepted it.
            raise _RowRejected(f"no response ({type(error).__name__}); it may have been accepted") from None
        if response.status_code == httpx.codes.CREATED:
            return str(response.json()["id"])
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            raise _RowRejected(response.json().get("detail", response.text))
        await asyncio.sleep(float(response.headers.get("Retry-After", 1)))
    raise _RowRejected(f"the gateway was unavailable {MAX_TRIES} times")


async def _follow(client: httpx.AsyncClient, run: DemoRun) -> None:
    """Poll the open notifications until all are final, or until none becomes final within `STALL_TIMEOUT`."""
    slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

    async def poll(notification_id: str) -> None:
        async with slots:
            try:
                response = await client.get(f"/v1/notifications/{notification_id}")
            except httpx.TransportError:
                return  # the gateway may be restarting; the next round polls again
        if response.status_code in TRY_AGAIN:
            return
        notification = response.raise_for_status().json()
        if all(delivery["status"] in FINAL for delivery in notification["deliveries"]):
            run.open_ids.remove(notification_id)
            run.final.append(notification)
        run.show()

    last_change, known = time.monotonic(), 0
    while run.open_ids and time.monotonic() - last_change < STALL_TIMEOUT:
        await asyncio.gather(*map(poll, list(run.open_ids)))
        if len(run.final) != known:
            last_change, known = time.monotonic(), len(run.final)
        if run.open_ids:
            await asyncio.sleep(POLL_INTERVAL)


def _table(notifications: list[Json]) -> Table:
    latencies: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    attempts: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for notification in notifications:
        accepted = datetime.fromisoformat(notification["created_at"])
        for delivery in notification["deliveries"]:
            kind = (delivery["channel"], delivery["status"])
            attempts[kind][len(delivery["attempts"])] += 1
            if delivery["attempts"]:
                finished = datetime.fromisoformat(delivery["attempts"][-1]["finished_at"])
                latencies[kind].append((finished - accepted).total_seconds())
    table = Table("channel", "status", title="Deliveries")
    for heading in ("deliveries", "attempts", "1", "2", "3+", "p50 s", "p95 s", "p99 s"):
        table.add_column(heading, justify="right")
    for kind in sorted(attempts):
        counts = attempts[kind]
        table.add_row(
            *kind, str(counts.total()), str(sum(number * count for number, count in counts.items())),
            str(counts[1]), str(counts[2]), str(counts.total() - counts[0] - counts[1] - counts[2]),
            *_percentiles(latencies[kind]),
        )  # fmt: skip
    table.caption = "1, 2, 3+: deliveries by their number of attempts; seconds: from acceptance to the last attempt"
    return table


def _percentiles(seconds: list[float]) -> tuple[str, str, str]:
    if not seconds:
        return "-", "-", "-"
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return f"{cuts[49]:.2f}", f"{cuts[94]:.2f}", f"{cuts[98]:.2f}"
