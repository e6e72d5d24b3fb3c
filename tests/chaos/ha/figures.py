"""What a fault delayed: the first 201 after it, and the deliveries of each channel."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import asyncpg

from chaos.load import Accepted, Kind
from chaos.scene import Fault

ATTEMPTS = """
    SELECT d.channel, d.notification_id, a.attempt, extract(epoch FROM a.started_at)::float AS at
    FROM attempts a JOIN deliveries d ON d.id = a.delivery_id ORDER BY a.started_at
"""


@dataclass(frozen=True)
class Delay:
    """The delays that a fault caused, in seconds."""

    first_201: float
    """From the fault to the first 201 for a request that was posted after it."""
    stall: float
    """The longest time in which no delivery of some channel was attempted."""
    most: float
    """The time from the 201 of a notification to the first attempt of a delivery, which 99 of 100 do not exceed."""
    slowest: float
    """The longest of these times."""


async def delays(postgres_url: str, faults: Sequence[Fault], accepted: Mapping[str, Accepted]) -> list[Delay]:
    """Return the delays of each fault."""
    connection = await asyncpg.connect(postgres_url)
    try:
        attempts = await connection.fetch(ATTEMPTS)
    finally:
        await connection.close()
    return [_delay(fault, attempts, accepted) for fault in faults]


def _delay(fault: Fault, attempts: Sequence[Any], accepted: Mapping[str, Accepted]) -> Delay:
    end = fault.ended + fault.recovered_after
    times = defaultdict[str, list[float]](list)
    for row in attempts:
        if fault.began <= row["at"] <= end:
            times[row["channel"]].append(row["at"])
    stall = max((_longest_gap([fault.began, *each, end]) for each in times.values()), default=end - fault.began)
    answers = [each.at for each in accepted.values() if each.posted_at >= fault.began]
    waits = sorted(
        row["at"] - found.at
        for row in attempts
        if row["attempt"] == 1
        and (found := accepted.get(str(row["notification_id"]))) is not None
        and found.kind is Kind.PLAIN
        and fault.began <= found.at <= end
    )
    most, slowest = (waits[-1 - len(waits) // 100], waits[-1]) if waits else (0.0, 0.0)
    return Delay(min(answers, default=end) - fault.began, stall, most, slowest)


def _longest_gap(times: Sequence[float]) -> float:
    return max(later - earlier for earlier, later in pairwise(times))
