"""The changes of status that the gateway itself commits."""

from collections.abc import Iterable
from typing import Any

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from sqlalchemy import Row


def status_changes(rows: Iterable[Row[Any]], status: DeliveryStatus) -> list[StatusChange]:
    """One per row of `deliveries` that was given `status`: id, notification_id, channel, round, attempt, updated_at."""
    return [
        StatusChange(
            delivery_id=row.id,
            notification_id=row.notification_id,
            channel=Channel(row.channel),
            status=status,
            round=row.round,
            attempt=row.attempt,
            changed_at=row.updated_at,
        )
        for row in rows
    ]
