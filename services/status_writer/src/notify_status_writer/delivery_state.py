"""Decide how results change a delivery, with pure functions. Duplicates and the order of results do not matter."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from notify_common.contracts.messages import DeliveryResult, DeliveryStatus, Outcome

# `WRITE` in result_store.py implements the same order in SQL.
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
