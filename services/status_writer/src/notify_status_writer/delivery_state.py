"""Decide how results change a delivery, with pure functions. Duplicates and the order of results do not matter."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryResult, DeliveryStatus, Outcome

# `OVERWRITES` in result_store.py implements the same order in SQL.
ATTEMPT_RANK = {Outcome.SENT: 3, Outcome.FAILED: 2, Outcome.RETRYING: 1, Outcome.THROTTLED: 1}
# No two final statuses share a rank, because the order in which results arrive must not matter.
STATUS_RANK = {
    DeliveryStatus.SENT: 5,
    DeliveryStatus.FAILED: 4,
    DeliveryStatus.CANCELLED: 3,
    DeliveryStatus.EXPIRED: 2,
    DeliveryStatus.RETRYING: 1,
    DeliveryStatus.PENDING: 0,
}

# Each attempt increments the number by one, and results wait for a few days at most. Without this limit, one forged
# result could store the highest possible number, so that no later attempt could have a higher one.
MAX_ATTEMPTS_AHEAD = 100_000


class Reported(NamedTuple):
    """A result, and the channel whose senders reported it."""

    result: DeliveryResult
    channel: Channel | None
    """None if the result came from a queue to which the senders of all channels can write."""


class Refusal(StrEnum):
    """The reason for which a result is not applied."""

    UNKNOWN_DELIVERY = "unknown delivery"
    OTHER_CHANNEL = "delivery of another channel"
    FUTURE_ROUND = "round that has not begun"
    ATTEMPT_TOO_HIGH = "attempt number too high"
    CONTRADICTION = "counters that contradict each other"


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """A delivery's identity, and the columns that results change."""

    id: UUID
    notification_id: UUID
    channel: str
    """Possibly a channel of a newer version, because deliveries outlive a rollback."""
    status: DeliveryStatus
    round: int
    attempt: int
    failures: int

    @property
    def precedence(self) -> tuple[bool, int, int]:
        """The precedence of this state: of two states of a delivery, the one with the higher precedence wins.

        A later round wins over an earlier one and, within a round, a final status over one that is not final. However,
        `sent` always wins, because the user has the message.
        """
        return (self.status is DeliveryStatus.SENT, self.round, STATUS_RANK[self.status])


def refusal(delivery: DeliveryState | None, reported: Reported) -> Refusal | None:
    """Return why `reported` must not change the stored `delivery`, or None if it may."""
    result, channel = reported
    if delivery is None:
        return Refusal.UNKNOWN_DELIVERY
    if channel is not None and channel != delivery.channel:
        return Refusal.OTHER_CHANNEL
    # An operator's retry stores the new round before it is requested.
    if result.round > delivery.round:
        return Refusal.FUTURE_ROUND
    if result.attempt > delivery.attempt + MAX_ATTEMPTS_AHEAD:
        return Refusal.ATTEMPT_TOO_HIGH
    # PostgreSQL would reject the whole batch.
    if result.failures > result.attempt or (result.attempt == 0 and result.outcome is not Outcome.EXPIRED):
        return Refusal.CONTRADICTION
    return None


def advance(delivery: DeliveryState, result: DeliveryResult) -> DeliveryState:
    """Apply `result`, and return the delivery with the winning status and the higher counters."""
    reported = replace(
        delivery, status=result.outcome.status, round=result.round, attempt=result.attempt, failures=result.failures
    )
    # Counters only grow: even if a result arrives too late to matter, its attempt was made and its round had begun.
    latest_round = max(delivery.round, reported.round)
    return replace(
        delivery,
        status=max(delivery, reported, key=lambda state: state.precedence).status,
        round=latest_round,
        attempt=max(delivery.attempt, reported.attempt),
        failures=max(state.failures for state in (delivery, reported) if state.round == latest_round),
    )


def advance_all(deliveries: Mapping[UUID, DeliveryState], results: Iterable[DeliveryResult]) -> list[DeliveryState]:
    """Apply `results` to their `deliveries`, and return the new states of those that have changed."""
    after = dict(deliveries)
    for result in results:
        after[result.delivery_id] = advance(after[result.delivery_id], result)
    return [state for delivery_id, state in after.items() if state != deliveries[delivery_id]]


def best_attempts(results: Iterable[DeliveryResult]) -> dict[tuple[UUID, int], DeliveryResult]:
    """Return each attempt's highest-ranked result, or the first of equals; `expired` is not an attempt."""
    best: dict[tuple[UUID, int], DeliveryResult] = {}
    for result in results:
        if result.outcome is Outcome.EXPIRED:
            continue
        key = (result.delivery_id, result.attempt)
        known = best.get(key)
        if known is None or ATTEMPT_RANK[result.outcome] > ATTEMPT_RANK[known.outcome]:
            best[key] = result
    return best
