"""Audit a chaos run: compare the stored deliveries with what was accepted and what was actually sent."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
from notify_common.contracts import topology
from notify_local.rabbitmq import DEAD_LETTER_TIMEOUT

from chaos.attribution import Sent, explains, ran_again, result_unpublished
from chaos.load import Accepted, Kind
from chaos.scene import Fault

QUIET_TIMEOUT = 180.0  # seconds
# If RabbitMQ dies while moving a message out of a retry queue, no queue counts the message until the move is repeated.
# The queues must therefore stay empty for this long before the system is considered quiet.
MOVED_AGAIN = DEAD_LETTER_TIMEOUT / 1000 + 5  # seconds
# The longest time that a delivery may wait for its first attempt while another channel's queue accepts nothing.
UNAFFECTED = 10.0  # seconds
OPEN_STATUSES = frozenset({"pending", "retrying"})
OPEN = "SELECT count(*) FROM deliveries WHERE status IN ('pending', 'retrying')"
GAPS = """
    SELECT d.id FROM deliveries d LEFT JOIN attempts a ON a.delivery_id = d.id
    GROUP BY d.id HAVING count(a.attempt) <> d.attempt OR coalesce(max(a.attempt), 0) <> d.attempt
"""
ENDS = """
    SELECT d.id, count(*) FILTER (WHERE a.outcome IN ('sent', 'failed')) AS ends, min(a.started_at) AS first_attempt,
           max(a.started_at) AS last_attempt, array_remove(array_agg(a.next_attempt_at), NULL) AS waits
    FROM deliveries d LEFT JOIN attempts a ON a.delivery_id = d.id AND a.round = d.round
    GROUP BY d.id
"""


# The final statuses that a delivery may have, by the kind of its notification.
ENDINGS = {
    Kind.PLAIN: {"sent", "failed"},
    Kind.SCHEDULED: {"sent", "failed"},
    Kind.EXPIRING: {"sent", "failed", "expired"},
    Kind.CANCELLED: {"cancelled"},
    Kind.LARGE: {"sent", "failed"},
    Kind.RACED: {"failed", "cancelled"},
}


@dataclass
class Report:
    """The findings of the audit."""

    accepted: int = 0
    deliveries: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    stranded: int = 0
    """The number of open deliveries that nothing will ever move: they are neither in the outbox nor in a queue."""
    sent_twice: Counter[str] = field(default_factory=Counter)
    """The number of repeated sends, by the name of the fault that explains them."""
    lateness: list[float] = field(default_factory=list)
    """For each scheduled delivery, the seconds from its scheduled time to its first attempt."""
    complaints: list[str] = field(default_factory=list)
    """The findings that no fault explains."""

    @property
    def clean(self) -> bool:
        """True if nothing was lost or stranded, and a fault explains every finding."""
        return not (self.lost or self.stranded or self.complaints)


async def await_quiet(
    postgres_url: str, management_url: str, *, broker_died: bool, timeout: float = QUIET_TIMEOUT
) -> None:
    """Wait until nothing is in flight, but no longer than `timeout`; the audit reports anything that is left."""
    quiet_for = MOVED_AGAIN if broker_died else 0.0
    deadline, quiet_since = time.monotonic() + timeout, time.monotonic()
    while time.monotonic() < deadline:
        try:
            quiet = await _nothing_open(postgres_url, management_url)
        except (OSError, asyncpg.PostgresError, httpx.HTTPError):
            quiet = False  # a server has not restarted yet
        if not quiet:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since >= quiet_for:
            return
        await asyncio.sleep(0.5)


async def audit(
    postgres_url: str,
    management_url: str,
    ledgers: Path,
    accepted: Mapping[str, Accepted],
    faults: Sequence[Fault],
    *,
    max_retries: int,
) -> Report:
    """Compare what PostgreSQL, the queues and the ledgers contain with the responses that the client received."""
    report = Report(accepted=len(accepted))
    connection = await asyncpg.connect(postgres_url)
    try:
        deliveries = await connection.fetch("SELECT id, notification_id, channel, status, attempt FROM deliveries")
        sent = _read(ledgers)  # read after the deliveries, so that each one stored as sent is already in a ledger
        stored = Counter(row["notification_id"] for row in deliveries)
        report.deliveries = Counter(row["status"] for row in deliveries)
        lost = [each for each, notification in accepted.items() if stored[UUID(each)] != notification.channels]
        unsent = [row["id"] for row in deliveries if row["status"] == "sent" and row["id"] not in sent]
        by_id = {UUID(each): notification for each, notification in accepted.items()}
        kinds = {row["id"]: by_id.get(row["notification_id"], Accepted(0.0)) for row in deliveries}
        wrong = [row["id"] for row in deliveries if row["status"] not in ENDINGS[kinds[row["id"]].kind] | OPEN_STATUSES]
        report.lost = len(lost) + len(unsent) + len(wrong)
        _complain(report, "accepted notifications without a stored delivery for each channel", lost)
        _complain(report, "deliveries stored as sent but in no ledger", unsent)
        _complain(report, "deliveries in the wrong final status", wrong)
        _complain(report, "stored notifications for which this client got no 201", stored.keys() - by_id.keys())
        _complain(report, "deliveries in a ledger but not stored", sent.keys() - {row["id"] for row in deliveries})
        _complain(report, "deliveries with gaps in their attempts", [row["id"] for row in await connection.fetch(GAPS)])
        attempts = {(row[0], row[1]) for row in await connection.fetch("SELECT delivery_id, attempt FROM attempts")}
        rounds = {row["id"]: row for row in await connection.fetch(ENDS)}
        _check_times(report, kinds, rounds)
        channels = {row["id"]: row["channel"] for row in deliveries}
        held_up = _held_up(channels, kinds, rounds, faults)
        _complain(report, "deliveries that waited for another channel's queue", held_up)
        stored_as_sent = {row["id"] for row in deliveries if row["status"] == "sent"}
        _complain(report, "sent attempts that are not stored", _unrecorded(sent, attempts, stored_as_sent, faults))
        waiting = {row["delivery_id"] for row in await connection.fetch("SELECT delivery_id FROM outbox")}
        _complain(report, "rows left in the outbox", waiting)
        poison = await connection.fetch("SELECT delivery_id FROM attempts WHERE error_class = 'poison'")
        _complain(report, "healthy deliveries rejected as poison", poison)
        failed = [row for row in deliveries if row["status"] == "failed" and kinds[row["id"]].kind is not Kind.RACED]
        early = [row["id"] for row in failed if row["attempt"] < max_retries]
        _complain(report, "deliveries that failed before their retries were exhausted", early)
    finally:
        await connection.close()
    for row in deliveries:
        _check_delivery(report, row, sent.get(row["id"], []), rounds[row["id"]], kinds[row["id"]].at, faults)
    queues = await _queue_lengths(management_url)
    check_open(report, [row["id"] for row in deliveries if row["status"] in OPEN_STATUSES], waiting, queues)
    for queue, count in queues.items():
        _complain(report, f"messages in {queue}", range(count))
    return report


def _unrecorded(
    sent: Mapping[UUID, Sequence[Sent]],
    attempts: Set[tuple[UUID, int]],
    stored_as_sent: Set[UUID],
    faults: Sequence[Fault],
) -> list[tuple[UUID, int]]:
    """Return the sent attempts that are not stored although no fault explains it."""
    # An attempt may be missing if the sender was killed before it published the result and the delivery expired before
    # the next attempt.
    return [
        (delivery_id, line.attempt)
        for delivery_id, lines in sent.items()
        for line in lines
        if (delivery_id, line.attempt) not in attempts
        and not (line.attempt == 0 and delivery_id in stored_as_sent)
        and not any(line.sender_killed_by(fault) and result_unpublished(line, fault, faults) for fault in faults)
    ]


def check_open(report: Report, still_open: Sequence[UUID], waiting: Set[UUID], queues: Mapping[str, int]) -> None:
    """Complain about open deliveries, and count those that nothing will ever move as stranded."""
    if any(not queue.startswith(topology.DEAD.name) for queue in queues):
        _complain(report, "deliveries still open, while messages are in the queues", still_open)
        return
    stranded = [each for each in still_open if each not in waiting]
    report.stranded = len(stranded)
    _complain(report, "deliveries still open, with a row in the outbox", waiting & set(still_open))
    _complain(report, "open deliveries that nothing will ever move", stranded)


def _check_delivery(
    report: Report, row: Any, sent: Sequence[Sent], last_round: Any, accepted_at: float, faults: Sequence[Fault]
) -> None:
    """Attribute each repeated send of a delivery to a fault."""
    times, ends = len(sent), last_round["ends"]
    waits = [wait.timestamp() for wait in last_round["waits"]]
    if times == (row["status"] == "sent") and ends == (row["status"] in {"sent", "failed"}):
        return
    for earlier in sent[: max(times - 1, 1)]:
        # A fault must explain why this send did not complete the delivery.
        explained = [
            fault
            for fault in faults
            if explains(fault, earlier, sent, accepted_at, waits)
            or (
                (earlier.attempt < sent[-1].attempt or earlier.pid == 0)
                and ran_again(fault, earlier, row["channel"], accepted_at)
            )
        ]
        if not explained:
            report.complaints.append(
                f"no fault explains delivery {row['id']}: {row['status']}, sent {times} times, {ends} final attempts"
            )
            return
        nearest = min(explained, key=lambda fault: abs(fault.began - earlier.at))
        report.sent_twice[nearest.name] += 1


def _check_times(report: Report, kinds: Mapping[UUID, Accepted], rounds: Mapping[UUID, Any]) -> None:
    """Check that nothing was attempted before its scheduled time or after its expiry."""
    early, late = [], []
    for delivery_id, notification in kinds.items():
        first, last = rounds[delivery_id]["first_attempt"], rounds[delivery_id]["last_attempt"]
        if notification.time is None or first is None:
            continue
        if notification.kind is Kind.SCHEDULED:
            report.lateness.append(first.timestamp() - notification.time)
            if first.timestamp() < notification.time:
                early.append(delivery_id)
        elif last.timestamp() >= notification.time:
            late.append(delivery_id)
    _complain(report, "deliveries attempted before their scheduled time", early)
    _complain(report, "deliveries attempted after their expiry or cancellation", late)


def _read(folder: Path) -> dict[UUID, list[Sent]]:
    sent: defaultdict[UUID, list[Sent]] = defaultdict(list)
    for file in folder.glob("*.ledger"):
        for line in file.read_text().splitlines():
            at, delivery_id, _, attempt = line.split()
            sent[UUID(delivery_id)].append(Sent(float(at), int(file.stem), int(attempt)))
    return {delivery_id: sorted(lines, key=lambda line: line.at) for delivery_id, lines in sent.items()}


def _held_up(
    channels: Mapping[UUID, str],
    kinds: Mapping[UUID, Accepted],
    rounds: Mapping[UUID, Any],
    faults: Sequence[Fault],
) -> list[UUID]:
    """Return the deliveries that became due while another channel's queue accepted nothing, and that waited for it."""
    held_up = []
    for fault in faults:
        for delivery_id, notification in kinds.items():
            due, first = max(notification.at, notification.time or 0.0), rounds[delivery_id]["first_attempt"]
            if (
                fault.refused not in {None, channels[delivery_id]}
                and notification.kind in {Kind.PLAIN, Kind.SCHEDULED}
                and fault.began <= due <= fault.ended
                and first is not None
                and first.timestamp() - due > UNAFFECTED
            ):
                held_up.append(delivery_id)
    return held_up


async def _nothing_open(postgres_url: str, management_url: str) -> bool:
    connection = await asyncpg.connect(postgres_url, timeout=5)
    try:
        if await connection.fetchval(OPEN) or await connection.fetchval("SELECT count(*) FROM outbox"):
            return False
    finally:
        await connection.close()
    return not await _queue_lengths(management_url)


async def _queue_lengths(management_url: str) -> dict[str, int]:
    """Return the lengths of the queues that are not empty.

    Dead letters are included: this test sends no poison messages, so any dead letter is a failure.
    """
    async with httpx.AsyncClient(base_url=management_url, timeout=30) as management:
        queues = (await management.get("/api/queues")).raise_for_status().json()
    return {queue["name"]: queue["messages"] for queue in queues if queue.get("messages")}


def _complain(report: Report, problem: str, found: Any) -> None:
    if found:
        examples = ", ".join(str(each) for each in list(found)[:3])
        report.complaints.append(f"{len(found)} {problem}: {examples}")
