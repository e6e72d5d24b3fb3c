"""Audit a chaos run: compare the stored deliveries with what was accepted and what was actually sent."""

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
from notify_common.runtime.outage import JITTER, LONGEST_WAIT
from notify_local.rabbitmq import DEAD_LETTER_TIMEOUT

from chaos.faults import MAIL_SERVER_DOWN, Fault
from chaos.load import CHANNELS, Accepted, Kind

QUIET_TIMEOUT = 180.0  # seconds
# If RabbitMQ dies while moving a message out of a retry queue, no queue counts the message until the move is repeated.
# The queues must therefore stay empty for this long before the system is considered quiet.
MOVED_AGAIN = DEAD_LETTER_TIMEOUT / 1000 + 5  # seconds
# The longest time from a provider's acceptance to the ack of the message; a busy or freshly started process is slow.
IN_FLIGHT = 5.0  # seconds
# The system counts as recovered once one sender has reconnected; the other senders may take this much longer.
RECONNECTED = LONGEST_WAIT * (1 + JITTER) + 1  # seconds
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


@dataclass(frozen=True)
class Sent:
    """A line in a ledger; `pid` and `attempt` are 0 if a mail server wrote it, because a mail server knows neither."""

    at: float
    pid: int
    attempt: int

    def sender_killed_by(self, fault: Fault) -> bool:
        """Return True if the fault killed the sender, or, if `pid` is 0 (unknown), any e-mail sender."""
        if self.pid:
            return self.pid in fault.killed
        return any(name.startswith("email_sender") for name in fault.killed.values())


# The final statuses that a delivery may have, by the kind of its notification.
ENDINGS = {
    Kind.PLAIN: {"sent", "failed"},
    Kind.SCHEDULED: {"sent", "failed"},
    Kind.EXPIRING: {"sent", "failed", "expired"},
    Kind.CANCELLED: {"cancelled"},
}


@dataclass
class Report:
    """The findings of the audit."""

    accepted: int = 0
    deliveries: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    sent_twice: Counter[str] = field(default_factory=Counter)
    """The number of repeated sends, by the name of the fault that explains them."""
    lateness: list[float] = field(default_factory=list)
    """For each scheduled delivery, the seconds from its scheduled time to its first attempt."""
    complaints: list[str] = field(default_factory=list)
    """The findings that no fault explains."""


async def await_quiet(postgres_url: str, management_url: str, *, broker_died: bool) -> None:
    """Wait until nothing is in flight, but no longer than `QUIET_TIMEOUT`; the audit reports anything that is left."""
    quiet_for = MOVED_AGAIN if broker_died else 0.0
    deadline, quiet_since = time.monotonic() + QUIET_TIMEOUT, time.monotonic()
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
        lost = [each for each in accepted if stored[UUID(each)] != len(CHANNELS)]
        unsent = [row["id"] for row in deliveries if row["status"] == "sent" and row["id"] not in sent]
        by_id = {UUID(each): notification for each, notification in accepted.items()}
        kinds = {row["id"]: by_id.get(row["notification_id"], Accepted(0.0)) for row in deliveries}
        left = [row["id"] for row in deliveries if row["status"] not in ENDINGS[kinds[row["id"]].kind]]
        report.lost = len(lost) + len(unsent) + len(left)
        _complain(report, "accepted notifications without a stored delivery for each channel", lost)
        _complain(report, "deliveries stored as sent but in no ledger", unsent)
        _complain(report, "deliveries in the wrong final status", left)
        _complain(report, "stored notifications for which this client got no 201", stored.keys() - by_id.keys())
        _complain(report, "deliveries in a ledger but not stored", sent.keys() - {row["id"] for row in deliveries})
        _complain(report, "deliveries with gaps in their attempts", [row["id"] for row in await connection.fetch(GAPS)])
        attempts = {(row[0], row[1]) for row in await connection.fetch("SELECT delivery_id, attempt FROM attempts")}
        rounds = {row["id"]: row for row in await connection.fetch(ENDS)}
        _check_times(report, kinds, rounds)
        stored_as_sent = {row["id"]: row["status"] == "sent" for row in deliveries}
        # An attempt may be missing if the sender was killed before it published the result and the delivery expired
        # before the next attempt.
        unrecorded = [
            (delivery_id, line.attempt)
            for delivery_id, lines in sent.items()
            for line in lines
            if (delivery_id, line.attempt) not in attempts
            and not (line.attempt == 0 and stored_as_sent.get(delivery_id))
            and not any(line.sender_killed_by(fault) and _result_unpublished(line, fault, faults) for fault in faults)
        ]
        _complain(report, "sent attempts that are not stored", unrecorded)
        _complain(report, "rows left in the outbox", await connection.fetch("SELECT delivery_id FROM outbox"))
        poison = await connection.fetch("SELECT delivery_id FROM attempts WHERE error_class = 'poison'")
        _complain(report, "healthy deliveries rejected as poison", poison)
        early = [row["id"] for row in deliveries if row["status"] == "failed" and row["attempt"] < max_retries]
        _complain(report, "deliveries that failed before their retries were exhausted", early)
    finally:
        await connection.close()
    for row in deliveries:
        _check_delivery(report, row, sent.get(row["id"], []), rounds[row["id"]], kinds[row["id"]].at, faults)
    for queue, count in (await _queue_lengths(management_url)).items():
        _complain(report, f"messages in {queue}", range(count))
    return report


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
            if _explains(fault, earlier, accepted_at, waits)
            or ((earlier.attempt < sent[-1].attempt or earlier.pid == 0) and _ran_again(fault, earlier, row["channel"]))
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


def _explains(fault: Fault, sent: Sent, accepted_at: float, waits: Sequence[float]) -> bool:
    """Return True if the fault may have caused a second send.

    It may have interrupted this send or an earlier publish of its message.
    """
    if "rabbitmq" in fault.killed.values():
        # If RabbitMQ dies before it has recorded a move out of a retry queue, it repeats the move after its restart.
        back = fault.ended + fault.recovered_after + IN_FLIGHT
        if any(fault.began - IN_FLIGHT <= wait <= back for wait in waits):
            return True
    cut_from_provider = fault.name == MAIL_SERVER_DOWN and sent.pid == 0
    if fault.cuts_all or sent.sender_killed_by(fault) or cut_from_provider:
        return _in_flight(fault, sent)
    # If a gateway dies between publishing and deleting an outbox row, the row is published again once its lease ends.
    gateway_died = any(name.startswith("gateway") for name in fault.killed.values())
    return gateway_died and accepted_at <= fault.ended and sent.at >= fault.began - IN_FLIGHT


def _ran_again(fault: Fault, sent: Sent, channel: str) -> bool:
    """Return True if a killed sender may have published a retry for a failed attempt without acking the message."""
    sender_died = any(name.startswith(f"{channel}_sender") for name in fault.killed.values())
    return sender_died and _in_flight(fault, sent)


def _in_flight(fault: Fault, sent: Sent) -> bool:
    return fault.began - IN_FLIGHT <= sent.at <= fault.ended + IN_FLIGHT


def _result_unpublished(sent: Sent, kill: Fault, faults: Sequence[Fault]) -> bool:
    """Return True if `kill` may have ended the sender before it published the result.

    Either the send was still in flight, or a RabbitMQ outage was delaying the result.
    """
    cuts = (fault for fault in faults if fault.cuts_all and _in_flight(fault, sent))
    return _in_flight(kill, sent) or any(
        sent.at - IN_FLIGHT <= kill.began <= cut.ended + cut.recovered_after + RECONNECTED for cut in cuts
    )


def _read(folder: Path) -> dict[UUID, list[Sent]]:
    sent: defaultdict[UUID, list[Sent]] = defaultdict(list)
    for file in folder.glob("*.ledger"):
        for line in file.read_text().splitlines():
            at, delivery_id, _, attempt = line.split()
            sent[UUID(delivery_id)].append(Sent(float(at), int(file.stem), int(attempt)))
    return {delivery_id: sorted(lines, key=lambda line: line.at) for delivery_id, lines in sent.items()}


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
