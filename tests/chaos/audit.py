"""After the quiet: does every accepted notification have its story, and does the story agree with the ledger?"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from chaos.faults import Fault

QUIET_TIMEOUT = 180.0  # seconds
# Between a provider's acceptance and the ack that follows from it, or a publish and the delete of its outbox row; long
# where a fault before has not been got over yet.
IN_FLIGHT = 20.0  # seconds
OPEN = "SELECT count(*) FROM deliveries WHERE status IN ('pending', 'retrying')"
GAPS = """
    SELECT d.id FROM deliveries d LEFT JOIN attempts a ON a.delivery_id = d.id
    GROUP BY d.id HAVING count(a.attempt) <> d.attempt OR coalesce(max(a.attempt), 0) <> d.attempt
"""
ENDS = """
    SELECT d.id, count(*) FILTER (WHERE a.outcome IN ('sent', 'failed')) AS ends
    FROM deliveries d LEFT JOIN attempts a ON a.delivery_id = d.id AND a.round = d.round
    GROUP BY d.id
"""


@dataclass(frozen=True)
class Sent:
    """A line of a ledger."""

    at: float
    pid: int


@dataclass
class Report:
    """What the audit found."""

    accepted: int = 0
    deliveries: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    sent_twice: Counter[str] = field(default_factory=Counter)
    """By the fault that explains it."""
    complaints: list[str] = field(default_factory=list)
    """What no fault explains."""


async def await_quiet(postgres_url: str, management_url: str) -> None:
    """Return when nothing is under way any more."""
    deadline = time.monotonic() + QUIET_TIMEOUT
    while True:
        try:
            if await _nothing_open(postgres_url, management_url):
                return
        except (OSError, asyncpg.PostgresError, httpx.HTTPError):
            pass  # not back yet
        if time.monotonic() > deadline:
            return  # the audit says what is left
        await asyncio.sleep(0.5)


async def audit(
    postgres_url: str, management_url: str, ledgers: Path, accepted: Mapping[str, float], faults: Sequence[Fault]
) -> Report:
    """Compare PostgreSQL, the queues, the ledgers and what the client was told."""
    report = Report(accepted=len(accepted))
    sent = _read(ledgers)
    connection = await asyncpg.connect(postgres_url)
    try:
        deliveries = await connection.fetch("SELECT id, notification_id, status FROM deliveries")
        stored = {row["notification_id"] for row in deliveries}
        report.deliveries = Counter(row["status"] for row in deliveries)
        lost = {UUID(each) for each in accepted} - stored
        unsent = [row["id"] for row in deliveries if row["status"] == "sent" and row["id"] not in sent]
        report.lost = len(lost) + len(unsent)
        _complain(report, "accepted and not stored", lost)
        _complain(report, "told as sent and not in a ledger", unsent)
        _complain(report, "stored twice for one request", stored - {UUID(each) for each in accepted})
        left = [row["id"] for row in deliveries if row["status"] in {"pending", "retrying"}]
        report.lost += len(left)
        _complain(report, "deliveries not final", left)
        _complain(report, "gaps in the attempts", [row["id"] for row in await connection.fetch(GAPS)])
        ends = {row["id"]: row["ends"] for row in await connection.fetch(ENDS)}
        _complain(report, "outbox rows", await connection.fetch("SELECT delivery_id FROM outbox"))
        poison = await connection.fetch("SELECT delivery_id FROM attempts WHERE error_class = 'poison'")
        _complain(report, "healthy deliveries that ended as poison", poison)
    finally:
        await connection.close()
    times = {row["id"]: accepted.get(str(row["notification_id"]), 0.0) for row in deliveries}
    for row in deliveries:
        _judge(report, row, sent.get(row["id"], []), ends[row["id"]], times[row["id"]], faults)
    for queue, count in (await _waiting(management_url)).items():
        _complain(report, f"messages in {queue}", range(count))
    return report


def _judge(
    report: Report, row: Any, sent: Sequence[Sent], ends: int, accepted_at: float, faults: Sequence[Fault]
) -> None:
    """One delivery: what is out of the ordinary must have its fault."""
    times = len(sent)
    if row["status"] in {"sent", "failed"} and times == (row["status"] == "sent") and ends == 1:
        return
    if row["status"] not in {"sent", "failed"}:
        return  # complained about already
    explained = next((fault for fault in faults if _explains(fault, sent, accepted_at)), None)
    if explained is None:
        what = f"delivery {row['id']} {row['status']}, sent {times} times, {ends} ends of a round: no fault explains it"
        report.complaints.append(what)
    else:
        report.sent_twice[explained.name] += max(times - 1, 0) + (row["status"] == "failed" and times > 0)


def _explains(fault: Fault, sent: Sequence[Sent], accepted_at: float) -> bool:
    """Whether what was sent first, or the publish before it, was in flight in what the fault has cut off."""
    if "gateway" in fault.killed.values() and fault.began - IN_FLIGHT <= accepted_at <= fault.ended:
        return True
    return any(
        (fault.cuts_all or each.pid in fault.killed) and fault.began - IN_FLIGHT <= each.at <= fault.ended + IN_FLIGHT
        for each in sent
    )


def _read(folder: Path) -> dict[UUID, list[Sent]]:
    sent: defaultdict[UUID, list[Sent]] = defaultdict(list)
    for file in folder.glob("*.ledger"):
        for line in file.read_text().splitlines():
            at, delivery_id, *_ = line.split()
            sent[UUID(delivery_id)].append(Sent(float(at), int(file.stem)))
    return {delivery_id: sorted(lines, key=lambda line: line.at) for delivery_id, lines in sent.items()}


async def _nothing_open(postgres_url: str, management_url: str) -> bool:
    connection = await asyncpg.connect(postgres_url, timeout=5)
    try:
        if await connection.fetchval(OPEN) or await connection.fetchval("SELECT count(*) FROM outbox"):
            return False
    finally:
        await connection.close()
    return not await _waiting(management_url)


async def _waiting(management_url: str) -> dict[str, int]:
    """Queues that are not empty, but for the archive."""
    async with httpx.AsyncClient(base_url=management_url, timeout=30) as management:
        queues = (await management.get("/api/queues")).raise_for_status().json()
    return {queue["name"]: queue["messages"] for queue in queues if queue.get("messages")}


def _complain(report: Report, what: str, found: Any) -> None:
    if found:
        examples = ", ".join(str(each) for each in list(found)[:3])
        report.complaints.append(f"{len(found)} {what}: {examples}")
