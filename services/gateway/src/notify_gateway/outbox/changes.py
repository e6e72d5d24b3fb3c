"""Build the status changes that the gateway itself commits."""

from collections.abc import Iterable
from typing import Any

from notify_common.contracts.messages import DeliveryStatus, StatusChange
from sqlalchemy import Row


def status_changes(rows: Iterable[Row[Any]], status: DeliveryStatus) -> list[StatusChange]:
    """Return the changes to `status` of these `deliveries`, whose rows were updated just now."""
    return [
        StatusChange.model_validate(
            {**row._asdict(), "delivery_id": row.id, "status": status, "changed_at": row.updated_at}
        )
        for row in rows
    ]
