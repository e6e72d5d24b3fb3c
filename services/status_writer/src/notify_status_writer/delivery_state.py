"""What a result does to a delivery: pure rules, the same outcome in whatever order and however often results come."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryResult, DeliveryStatus, Outcome

ATTEMPT_RANK = {Outcome.SENT: 3, Outcome.FAILED: 2, Outcome.RETRYING: 1, Outcome.THROTTLED: 1}
# No two final statuses share a rank: the order in which results come must not matter.
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
    """A row of `deliveries`, as far as results change it."""

    id: UUID
    notification_id: UUID
    channel: Channel
    status: DeliveryStatus
    round: int
    attempt: int
    failures: int

    @property
    def standing(self) -> tuple[bool, int, int]:
        """What decides between two truths: the higher one stays.

        Later rounds before earlier ones, final before not final; but `sent` is the truth whenever it comes: the
        user has the message.
        """
        return (self.status is DeliveryStatus.SENT, self.round, STATUS_RANK[self.status])


def advance(delivery: DeliveryState, result: DeliveryResult) -> DeliveryState:
    """The delivery after `result`: the higher standing of what is stored and what is reported."""
    reported = replace(
        delivery,
        status=result.outcome.status,
        round=result.round,
        attempt=result.attempt,
        failures=result.failures,
    )
    # Counters only grow: an overtaken result has still used its attempt, and a round that began has begun.
    latest_round = max(delivery.round, reported.round)
    return replace(
        delivery,
        status=max(delivery, reported, key=lambda state: state.standing).status,
        round=latest_round,
        attempt=max(delivery.attempt, reported.attempt),
        failures=max(state.failures for state in (delivery, reported) if state.round == latest_round),
    )


def best_attempts(results: Iterable[DeliveryResult]) -> dict[tuple[UUID, int], DeliveryResult]:
    """One result per attempt: the first of those with the highest rank. `expired` is none: no provider was called."""
    best: dict[tuple[UUID, int], DeliveryResult] = {}
    for result in results:
        if result.outcome is Outcome.EXPIRED:
            continue
        key = (result.delivery_id, result.attempt)
        known = best.get(key)
        if known is None or ATTEMPT_RANK[result.outcome] > ATTEMPT_RANK[known.outcome]:
            best[key] = result
    return best
