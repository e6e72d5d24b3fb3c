"""A notification's status follows from those of its deliveries. The rule stands here twice: for objects, for SQL."""

from collections.abc import Iterable
from enum import StrEnum

from notify_common.messages import DeliveryStatus
from notify_database.models import Delivery, Notification
from sqlalchemy import ScalarSelect, case, func, select


class NotificationStatus(StrEnum):
    """Where a notification is."""

    PENDING = "pending"
    SENT = "sent"
    PARTIALLY_SENT = "partially_sent"
    FAILED = "failed"
    CANCELLED = "cancelled"


def notification_status(deliveries: Iterable[DeliveryStatus]) -> NotificationStatus:
    """`pending` while any is not final; then `sent` or `cancelled` if all are, `partially_sent` if some were sent."""
    statuses = set(deliveries)
    if not all(status.final for status in statuses):
        return NotificationStatus.PENDING
    if statuses == {DeliveryStatus.SENT}:
        return NotificationStatus.SENT
    if statuses == {DeliveryStatus.CANCELLED}:
        return NotificationStatus.CANCELLED
    return NotificationStatus.PARTIALLY_SENT if DeliveryStatus.SENT in statuses else NotificationStatus.FAILED


def notification_status_sql() -> ScalarSelect[str]:
    """The same rule as a subquery, correlated to `Notification`."""
    not_final = [status for status in DeliveryStatus if not status.final]
    return (
        select(
            case(
                (func.bool_or(Delivery.status.in_(not_final)), NotificationStatus.PENDING.value),
                (func.bool_and(Delivery.status == DeliveryStatus.SENT), NotificationStatus.SENT.value),
                (
                    func.bool_and(Delivery.status == DeliveryStatus.CANCELLED),
                    NotificationStatus.CANCELLED.value,
                ),
                (
                    func.bool_or(Delivery.status == DeliveryStatus.SENT),
                    NotificationStatus.PARTIALLY_SENT.value,
                ),
                else_=NotificationStatus.FAILED.value,
            )
        )
        .where(Delivery.notification_id == Notification.id)
        .correlate(Notification)
        .scalar_subquery()
    )
