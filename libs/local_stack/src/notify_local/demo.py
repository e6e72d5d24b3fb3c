"""The demo: a file of notifications through the API, followed until every one is final."""

import asyncio
import csv
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from notify_common.contracts.channels import Channel
from notify_common.runtime.settings import EnvironmentSettings, load_settings
from pydantic import SecretStr
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from notify_local.console import console, say
from notify_local.errors import CanNotRun
from notify_local.folder import StackFolder
from notify_local.stack import running_system

NEEDED_COLUMNS = frozenset({"user_id", "channels", "message"})  # and, where wanted, subject and one per channel
REQUESTS_AT_ONCE = 50
USER_ID_DIGITS = 20
MAX_TRIES = 10  # while the gateway says 503
POLL_INTERVAL = 0.5  # seconds
PLAIN_LINE_INTERVAL = 2.0  # seconds between progress lines where there is no terminal
START_TIMEOUT = 180.0  # seconds
STALL_TIMEOUT = 600.0  # seconds without any notification becoming final
FINAL = frozenset({"sent", "failed", "expired", "cancelled"})

Json = dict[str, Any]
JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass
class DemoRun:
    """What has become of the rows so far."""

    rows: int = 0
    bad_rows: list[tuple[int, str]] = field(default_factory=list)
    open_ids: set[str] = field(default_factory=set)
    final: list[Json] = field(default_factory=list)


async def run_demo(folder: StackFolder, file: Path) -> int:
    """Send the rows of `file` and print what became of them; 0 if every row reached a final state."""
    rows = list(_read(file))
    async with (
        _gateway(folder) as url,
        httpx.AsyncClient(base_url=url, headers=_authorization(), timeout=30, trust_env=False) as client,
    ):
        run = DemoRun(rows=len(rows))
        say(f"Sending {len(rows)} rows of {file} to {url}")
        with _Progress(run) as progress:
            await _send_all(client, rows, run, progress)
            await _follow(client, run, progress)
    for line, problem in sorted(run.bad_rows):
        say(f"line {line}: {problem}")
    console.print(_table(run.final))
    complete = not run.bad_rows and not run.open_ids
    say(
        f"{len(run.final)} of {run.rows} notifications are final"
        + (f", {len(run.bad_rows)} rows were refused" if run.bad_rows else "")
        + (f", {len(run.open_ids)} are still open" if run.open_ids else "")
        + "."
    )
    return 0 if complete else 1


class GatewayKey(EnvironmentSettings):
    """The key that the gateway is given where it is started with AUTH=on: its own setting."""

    bootstrap_api_key: SecretStr | None = None


def _authorization() -> dict[str, str]:
    key = load_settings(GatewayKey).bootstrap_api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _read(file: Path) -> Iterator[tuple[int, Json]]:
    """Line numbers and rows; a line number is that of the row's last line, as an editor shows it."""
    try:
        # What is not UTF-8 in a row is kept as it is, for that row to be refused and no other.
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.DictReader(lines)
            if missing := NEEDED_COLUMNS - set(reader.fieldnames or ()):
                raise CanNotRun(f"{file}: the column {' and '.join(sorted(missing))} is missing")
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise CanNotRun(f"{file}: {error.strerror}") from None
    except csv.Error as error:
        raise CanNotRun(f"{file}: not a CSV file ({error})") from None


def _request(row: Json) -> Json:
    """The API request of a row. What the row has wrong is left to the gateway to say."""
    user_id = (row["user_id"] or "").strip()
    request: Json = {
        "user_id": int(user_id)
        if user_id.isascii() and user_id.isdigit() and len(user_id) <= USER_ID_DIGITS
        else user_id,
        "channels": (row["channels"] or "").replace(";", " ").split(),
        "message": row["message"] or "",
    }
    if subject := row.get("subject"):
        request["subject"] = subject
    if recipient := {channel: row[channel] for channel in Channel if row.get(channel)}:
        request["recipient"] = recipient
    return request


@asynccontextmanager
async def _gateway(folder: StackFolder) -> AsyncIterator[str]:
    """The URL of the stack that runs in the folder, or of one that runs for the demo."""
    if not folder.is_locked():
        say("The system is not up: starting it for this demo (`make up` in another terminal keeps it).")
        async with running_system(folder, show_logs=False) as stack:
            yield stack.addresses["GATEWAY_URL"]
        return
    deadline = time.monotonic() + START_TIMEOUT
    while not (addresses := folder.addresses()):
        if time.monotonic() > deadline:
            raise CanNotRun("The system that runs in this folder does not become ready.")
        await asyncio.sleep(POLL_INTERVAL)
    if "GATEWAY_URL" not in addresses:
        raise CanNotRun("Only the servers run in this folder; stop them, then run this again.")
    yield addresses["GATEWAY_URL"]


async def _send_all(
    client: httpx.AsyncClient, rows: list[tuple[int, Json]], run: DemoRun, progress: "_Progress"
) -> None:
    places = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def send(line: int, row: Json) -> None:
        async with places:
            outcome = await _post(client, _request(row))
        if outcome.notification_id is None:
            run.bad_rows.append((line, outcome.problem))
        else:
            run.open_ids.add(outcome.notification_id)
        progress.show()

    await asyncio.gather(*(send(line, row) for line, row in rows))


@dataclass(frozen=True)
class _Posted:
    notification_id: str | None = None
    problem: str = ""


async def _post(client: httpx.AsyncClient, request: Json) -> _Posted:
    """Post the request, again while the gateway says that it can not accept now."""
    try:
        content = json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return _Posted(problem="is not UTF-8")
    for _ in range(MAX_TRIES):
        try:
            answer = await client.post("/api/notifications", content=content, headers=JSON_HEADERS)
        except httpx.TransportError as error:
            # Not repeated: it may have been accepted.
            return _Posted(problem=f"no answer ({type(error).__name__}): accepted or not, that is not known")
        if answer.status_code == httpx.codes.CREATED:
            return _Posted(answer.json()["id"])
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return _Posted(problem=answer.json().get("detail", answer.text))
        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    return _Posted(problem="the gateway could not accept it")


async def _follow(client: httpx.AsyncClient, run: DemoRun, progress: "_Progress") -> None:
    """Ask for every open notification again and again until all of its deliveries are final."""
    places = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def look(notification_id: str) -> None:
        async with places:
            try:
                answer = await client.get(f"/api/notifications/{notification_id}")
            except httpx.TransportError:
                return  # a gateway that is being restarted: asked again in the next round
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return
        notification = answer.raise_for_status().json()
        if all(delivery["status"] in FINAL for delivery in notification["deliveries"]):
            run.open_ids.remove(notification_id)
            run.final.append(notification)
        progress.show()

    last_change, known = time.monotonic(), 0
    while run.open_ids and time.monotonic() - last_change < STALL_TIMEOUT:
        await asyncio.gather(*(look(notification_id) for notification_id in list(run.open_ids)))
        if len(run.final) != known:
            last_change, known = time.monotonic(), len(run.final)
        if run.open_ids:
            await asyncio.sleep(POLL_INTERVAL)


class _Progress:
    """Live bars on a terminal, a line now and then elsewhere."""

    def __init__(self, run: DemoRun) -> None:
        self._run = run
        self._live = Progress(
            TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._accepted = self._live.add_task("accepted", total=run.rows)
        self._final = self._live.add_task("final", total=run.rows)
        self._next_line = time.monotonic() + PLAIN_LINE_INTERVAL

    def show(self) -> None:
        accepted, final = len(self._run.open_ids) + len(self._run.final), len(self._run.final)
        self._live.update(self._accepted, completed=accepted)
        self._live.update(self._final, completed=final)
        if not console.is_terminal and time.monotonic() > self._next_line:
            say(f"accepted {accepted} of {self._run.rows}, final {final}")
            self._next_line = time.monotonic() + PLAIN_LINE_INTERVAL

    def __enter__(self) -> "_Progress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


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
    table = Table(title="Deliveries")
    table.add_column("channel")
    table.add_column("status")
    for heading in ("deliveries", "attempts", "1", "2", "3+", "p50 s", "p95 s", "p99 s"):
        table.add_column(heading, justify="right")
    for kind in sorted(attempts):
        counts = attempts[kind]
        p50, p95, p99 = _percentiles(latencies[kind])
        table.add_row(
            *kind, str(counts.total()), str(sum(number * count for number, count in counts.items())),
            str(counts[1]), str(counts[2]), str(counts.total() - counts[0] - counts[1] - counts[2]), p50, p95, p99,
        )  # fmt: skip
    table.caption = (
        "attempts: all of them, then how many deliveries took 1, 2, 3 or more; seconds: accepted to last attempt"
    )
    return table


def _percentiles(seconds: list[float]) -> tuple[str, str, str]:
    if not seconds:
        return "-", "-", "-"
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return f"{cuts[49]:.2f}", f"{cuts[94]:.2f}", f"{cuts[98]:.2f}"
