"""The rules by which a result changes a delivery: pure functions, independent of the order and number of arrivals."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryResult, DeliveryStatus, Outcome

# `WRITE` in result_store.py has the same order in SQL.
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
    """The columns of a delivery that results change, and its identity."""

    id: UUID
    notification_id: UUID
    channel: Channel
    status: DeliveryStatus
    round: int
    attempt: int
    failures: int

    @property
    def precedence(self) -> tuple[bool, int, int]:
        """The precedence between two states of a delivery: the higher one wins.

        A later round wins over an earlier one, and a final status over one that is not. But `sent` always wins, because
        the user has the message.
        """
        return (self.status is DeliveryStatus.SENT, self.round, STATUS_RANK[self.status])


def advance(delivery: DeliveryState, result: DeliveryResult) -> DeliveryState:
    """Return the delivery after `result`: the status with the higher precedence, and the higher counters."""
    reported = replace(
        delivery, status=result.outcome.status, round=result.round, attempt=result.attempt, failures=result.failures
    )
    # Counters only grow: a result that was overtaken still used its attempt, and its round did begin.
    latest_round = max(delivery.round, reported.round)
    return replace(
        delivery,
        status=max(delivery, reported, key=lambda state: state.precedence).status,
        round=latest_round,
        attempt=max(delivery.attempt, reported.attempt),
        failures=max(state.failures for state in (delivery, reported) if state.round == latest_round),
    )


def best_attempts(results: Iterable[DeliveryResult]) -> dict[tuple[UUID, int], DeliveryResult]:
    """Return one result per attempt, the first with the highest rank; `expired` is not an attempt."""
    best: dict[tuple[UUID, int], DeliveryResult] = {}
    for result in results:
        if result.outcome is Outcome.EXPIRED:
            continue
        key = (result.delivery_id, result.attempt)
        known = best.get(key)
        if known is None or ATTEMPT_RANK[result.outcome] > ATTEMPT_RANK[known.outcome]:
            best[key] = result
    return best
