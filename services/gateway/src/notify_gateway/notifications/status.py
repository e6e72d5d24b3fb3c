"""Derive a notification's status from its deliveries: the same rules apply in Python and in SQL."""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from enum import StrEnum

from notify_common.contracts.messages import DeliveryStatus


class NotificationStatus(StrEnum):
    """The status of a notification, which is derived from its deliveries."""

    PENDING = "pending"
    SENT = "sent"
    PARTIALLY_SENT = "partially_sent"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Rule:
    """A condition on the statuses of a notification's deliveries."""

    required: tuple[Set[DeliveryStatus], ...]
    """For each of these sets, at least one delivery has a status in it."""
    excluded: Set[DeliveryStatus]
    """No delivery has a status in this set."""


ALL = frozenset(DeliveryStatus)
OPEN = frozenset(status for status in DeliveryStatus if not status.final)
SENT = frozenset({DeliveryStatus.SENT})
CANCELLED = frozenset({DeliveryStatus.CANCELLED})

# The rules are exhaustive and mutually exclusive: exactly one holds for any set of deliveries.
RULES = {
    NotificationStatus.PENDING: Rule((OPEN,), frozenset()),
    NotificationStatus.SENT: Rule((SENT,), ALL - SENT),
    NotificationStatus.CANCELLED: Rule((CANCELLED,), ALL - CANCELLED),
    NotificationStatus.PARTIALLY_SENT: Rule((SENT, ALL - OPEN - SENT), OPEN),
    NotificationStatus.FAILED: Rule((ALL - OPEN - SENT - CANCELLED,), OPEN | SENT),
}


def notification_status(deliveries: Iterable[DeliveryStatus]) -> NotificationStatus:
    """Return the status of the notification with these deliveries.

    It is `pending` until all deliveries are final, then `sent` or `cancelled` if all of them were, `partially_sent` if
    some were sent, and otherwise `failed`.
    """
    present = set(deliveries)
    return next(
        status
        for status, rule in RULES.items()
        if all(present & statuses for statuses in rule.required) and not present & rule.excluded
    )


def has_status_sql(status: NotificationStatus, any_delivery: Callable[[str], str]) -> str:
    """Return the rule for `status` in SQL.

    `any_delivery` turns a condition on a delivery `d` into one that any delivery of the notification meets it.
    """

    def any_in(statuses: Set[DeliveryStatus]) -> str:
        listed = ", ".join(f"'{status}'" for status in sorted(statuses))
        return any_delivery(f"d.status IN ({listed})")

    rule = RULES[status]
    excluded = [f"NOT {any_in(rule.excluded)}"] if rule.excluded else []
    return " AND ".join([*map(any_in, rule.required), *excluded])
