"""The changes of status that the gateway itself commits."""

from collections.abc import Iterable
from typing import Any

from notify_common.channels import Channel
from notify_common.messages import DeliveryStatus, StatusChange
from notify_common.process import utc_now
from sqlalchemy import Row


def status_changes(rows: Iterable[Row[Any]], status: DeliveryStatus) -> list[StatusChange]:
    """One per row of `deliveries` (id, notification_id, channel, round, attempt) that was given `status`."""
    now = utc_now()
    return [
        StatusChange(
            delivery_id=row.id,
            notification_id=row.notification_id,
            channel=Channel(row.channel),
            status=status,
            round=row.round,
            attempt=row.attempt,
            changed_at=now,
        )
        for row in rows
    ]
