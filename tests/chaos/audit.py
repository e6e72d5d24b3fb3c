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
from notify_common.runtime.outage import JITTER, LONGEST_WAIT
from notify_local.rabbitmq import DEAD_LETTER_TIMEOUT

from chaos.faults import MAIL_SERVER_DOWN, Fault
from chaos.load import CHANNELS, Accepted, Kind

QUIET_TIMEOUT = 180.0  # seconds
# What a killed RabbitMQ was moving out of a retry queue is in no queue's count until it is moved again.
MOVED_AGAIN = DEAD_LETTER_TIMEOUT / 1000 + 5  # seconds
# From a provider's acceptance to the ack that follows from it; what is busy, or just came back, takes a while.
IN_FLIGHT = 5.0  # seconds
# From the recovery, for which one sender is enough, until the last one has a connection again.
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
    """A line of a ledger. A mail server's says neither which process has sent nor in which attempt: both are 0."""

    at: float
    pid: int
    attempt: int

    def is_of_one_killed(self, fault: Fault) -> bool:
        """Whether its sender was among those that were killed."""
        if self.pid:
            return self.pid in fault.killed
        return any(name.startswith("email_sender") for name in fault.killed.values())


# What may become of a delivery, by what its client wanted.
ENDINGS = {
    Kind.PLAIN: {"sent", "failed"},
    Kind.SCHEDULED: {"sent", "failed"},
    Kind.EXPIRING: {"sent", "failed", "expired"},
    Kind.CANCELLED: {"cancelled"},
}


@dataclass
class Report:
    """What the audit found."""

    accepted: int = 0
    deliveries: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    sent_twice: Counter[str] = field(default_factory=Counter)
    """By the fault that explains it."""
    lateness: list[float] = field(default_factory=list)
    """Seconds from the time of each scheduled delivery to its first attempt."""
    complaints: list[str] = field(default_factory=list)
    """What no fault explains."""


async def await_quiet(postgres_url: str, management_url: str, *, broker_died: bool) -> None:
    """Return when nothing is under way any more; the audit says what is left after `QUIET_TIMEOUT`."""
    quiet_for = MOVED_AGAIN if broker_died else 0.0
    deadline, quiet_since = time.monotonic() + QUIET_TIMEOUT, time.monotonic()
    while time.monotonic() < deadline:
        try:
            quiet = await _nothing_open(postgres_url, management_url)
        except (OSError, asyncpg.PostgresError, httpx.HTTPError):
            quiet = False  # not back yet
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
    """Compare PostgreSQL, the queues, the ledgers and what the client was told."""
    report = Report(accepted=len(accepted))
    connection = await asyncpg.connect(postgres_url)
    try:
        deliveries = await connection.fetch("SELECT id, notification_id, channel, status, attempt FROM deliveries")
        sent = _read(ledgers)  # after what they have to agree with
        stored = Counter(row["notification_id"] for row in deliveries)
        report.deliveries = Counter(row["status"] for row in deliveries)
        lost = [each for each in accepted if stored[UUID(each)] != len(CHANNELS)]
        unsent = [row["id"] for row in deliveries if row["status"] == "sent" and row["id"] not in sent]
        by_id = {UUID(each): told for each, told in accepted.items()}
        kinds = {row["id"]: by_id.get(row["notification_id"], Accepted(0.0)) for row in deliveries}
        left = [row["id"] for row in deliveries if row["status"] not in ENDINGS[kinds[row["id"]].kind]]
        report.lost = len(lost) + len(unsent) + len(left)
        _complain(report, "accepted and not stored, with a delivery for each channel", lost)
        _complain(report, "told as sent and not in a ledger", unsent)
        _complain(report, "deliveries that did not end as they should", left)
        _complain(report, "stored, and not accepted by this client", stored.keys() - by_id.keys())
        _complain(report, "in a ledger and not stored", sent.keys() - {row["id"] for row in deliveries})
        _complain(report, "gaps in the attempts", [row["id"] for row in await connection.fetch(GAPS)])
        attempts = {(row[0], row[1]) for row in await connection.fetch("SELECT delivery_id, attempt FROM attempts")}
        rounds = {row["id"]: row for row in await connection.fetch(ENDS)}
        _judge_times(report, kinds, rounds)
        told_as_sent = {row["id"]: row["status"] == "sent" for row in deliveries}
        # Sent by a process that died before it could tell, and too late to be attempted again.
        untold = [
            (delivery_id, line.attempt)
            for delivery_id, lines in sent.items()
            for line in lines
            if (delivery_id, line.attempt) not in attempts
            and not (line.attempt == 0 and told_as_sent.get(delivery_id))
            and not any(line.is_of_one_killed(fault) and _in_hand(line, fault, faults) for fault in faults)
        ]
        _complain(report, "sent in an attempt that is not on record", untold)
        _complain(report, "outbox rows", await connection.fetch("SELECT delivery_id FROM outbox"))
        poison = await connection.fetch("SELECT delivery_id FROM attempts WHERE error_class = 'poison'")
        _complain(report, "healthy deliveries that ended as poison", poison)
        early = [row["id"] for row in deliveries if row["status"] == "failed" and row["attempt"] < max_retries]
        _complain(report, "failed before their budget was used", early)
    finally:
        await connection.close()
    for row in deliveries:
        _judge(report, row, sent.get(row["id"], []), rounds[row["id"]], kinds[row["id"]].at, faults)
    for queue, count in (await _waiting(management_url)).items():
        _complain(report, f"messages in {queue}", range(count))
    return report


def _judge(
    report: Report, row: Any, sent: Sequence[Sent], story: Any, accepted_at: float, faults: Sequence[Fault]
) -> None:
    """One delivery: what is out of the ordinary must have its fault."""
    times, ends = len(sent), story["ends"]
    waits = [wait.timestamp() for wait in story["waits"]]
    if times == (row["status"] == "sent") and ends == (row["status"] in {"sent", "failed"}):
        return
    for earlier in sent[: max(times - 1, 1)]:
        # Each sending but the last: why was it not the last?
        explained = [
            fault
            for fault in faults
            if _explains(fault, earlier, accepted_at, waits)
            or ((earlier.attempt < sent[-1].attempt or earlier.pid == 0) and _ran_again(fault, earlier, row["channel"]))
        ]
        if not explained:
            what = f"delivery {row['id']} {row['status']}, sent {times} times, {ends} ends: no fault explains it"
            report.complaints.append(what)
            return
        nearest = min(explained, key=lambda fault: abs(fault.began - earlier.at))
        report.sent_twice[nearest.name] += 1


def _judge_times(report: Report, kinds: Mapping[UUID, Accepted], rounds: Mapping[UUID, Any]) -> None:
    """Nothing before its time, nothing after its expiry."""
    early, late = [], []
    for delivery_id, told in kinds.items():
        first, last = rounds[delivery_id]["first_attempt"], rounds[delivery_id]["last_attempt"]
        if told.time is None or first is None:
            continue
        if told.kind is Kind.SCHEDULED:
            report.lateness.append(first.timestamp() - told.time)
            if first.timestamp() < told.time:
                early.append(delivery_id)
        elif last.timestamp() >= told.time:
            late.append(delivery_id)
    _complain(report, "attempted before its time", early)
    _complain(report, "attempted after its expiry, or cancelled", late)


def _explains(fault: Fault, sent: Sent, accepted_at: float, waits: Sequence[float]) -> bool:
    """Whether this sending, or the publish before it, was in flight in what the fault has cut off."""
    if "rabbitmq" in fault.killed.values():
        # What it moves out of a retry queue, and has not noted as moved when it dies, it moves again.
        back = fault.ended + fault.recovered_after + IN_FLIGHT
        if any(fault.began - IN_FLIGHT <= wait <= back for wait in waits):
            return True
    cut_from_provider = fault.name == MAIL_SERVER_DOWN and sent.pid == 0
    if fault.cuts_all or sent.is_of_one_killed(fault) or cut_from_provider:
        return _in_flight(fault, sent)
    # A gateway that dies between publish and delete: what it had accepted is published again when its lease has ended.
    gateway_died = any(name.startswith("gateway") for name in fault.killed.values())
    return gateway_died and accepted_at <= fault.ended and sent.at >= fault.began - IN_FLIGHT


def _ran_again(fault: Fault, sent: Sent, channel: str) -> bool:
    """Whether a killed sender may have failed in this attempt before, and left the next one waiting without an ack."""
    sender_died = any(name.startswith(f"{channel}_sender") for name in fault.killed.values())
    return sender_died and _in_flight(fault, sent)


def _in_flight(fault: Fault, sent: Sent) -> bool:
    return fault.began - IN_FLIGHT <= sent.at <= fault.ended + IN_FLIGHT


def _in_hand(sent: Sent, kill: Fault, faults: Sequence[Fault]) -> bool:
    """Whether its sender may still have had the result when it was killed: it was under way, or RabbitMQ was away."""
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
    return not await _waiting(management_url)


async def _waiting(management_url: str) -> dict[str, int]:
    """Queues that are not empty. The archive, too, has to be: nothing here is poison."""
    async with httpx.AsyncClient(base_url=management_url, timeout=30) as management:
        queues = (await management.get("/api/queues")).raise_for_status().json()
    return {queue["name"]: queue["messages"] for queue in queues if queue.get("messages")}


def _complain(report: Report, what: str, found: Any) -> None:
    if found:
        examples = ", ".join(str(each) for each in list(found)[:3])
        report.complaints.append(f"{len(found)} {what}: {examples}")
