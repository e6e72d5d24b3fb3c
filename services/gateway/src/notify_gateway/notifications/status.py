"""A notification's status follows from those of its deliveries: one rule, for objects and for SQL."""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from enum import StrEnum

from notify_common.contracts.messages import DeliveryStatus


class NotificationStatus(StrEnum):
    """Where a notification is."""

    PENDING = "pending"
    SENT = "sent"
    PARTIALLY_SENT = "partially_sent"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Rule:
    """A notification has a status where there is a delivery `of_each` of these sets, and there is `none_of` that."""

    of_each: tuple[Set[DeliveryStatus], ...]
    none_of: Set[DeliveryStatus]


ALL = frozenset(DeliveryStatus)
OPEN = frozenset(status for status in DeliveryStatus if not status.final)
SENT = frozenset({DeliveryStatus.SENT})
CANCELLED = frozenset({DeliveryStatus.CANCELLED})

# Exactly one holds for any deliveries.
RULES = {
    NotificationStatus.PENDING: Rule((OPEN,), frozenset()),
    NotificationStatus.SENT: Rule((SENT,), ALL - SENT),
    NotificationStatus.CANCELLED: Rule((CANCELLED,), ALL - CANCELLED),
    NotificationStatus.PARTIALLY_SENT: Rule((SENT, ALL - OPEN - SENT), OPEN),
    NotificationStatus.FAILED: Rule((ALL - OPEN - SENT - CANCELLED,), OPEN | SENT),
}


def notification_status(deliveries: Iterable[DeliveryStatus]) -> NotificationStatus:
    """`pending` while any is not final; then `sent` or `cancelled` if all are, `partially_sent` if some were sent."""
    there = set(deliveries)
    return next(
        status
        for status, rule in RULES.items()
        if all(there & each for each in rule.of_each) and not there & rule.none_of
    )


def has_status_sql(status: NotificationStatus, its_deliveries: str) -> str:
    """The rule as a condition; `its_deliveries`: what joins deliveries `d` to their notification."""
    rule = RULES[status]
    conditions = [_any_of(each, its_deliveries) for each in rule.of_each]
    if rule.none_of:
        conditions.append(f"NOT {_any_of(rule.none_of, its_deliveries)}")
    return " AND ".join(conditions)


def _any_of(statuses: Set[DeliveryStatus], its_deliveries: str) -> str:
    listed = ", ".join(f"'{status}'" for status in sorted(statuses))
    return f"EXISTS (SELECT FROM deliveries d WHERE {its_deliveries} AND d.status IN ({listed}))"
