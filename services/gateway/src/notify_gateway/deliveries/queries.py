"""Read deliveries from PostgreSQL."""

from uuid import UUID

from sqlalchemy import text

from notify_gateway.database import TenantReads
from notify_gateway.deliveries.schemas import DeliveryOfNotification

DELIVERY_COLUMNS = "d.id AS delivery_id, d.channel, d.recipient, d.status, d.reason, d.updated_at"
DELIVERY = text(f"""
    SELECT {DELIVERY_COLUMNS}, d.notification_id, d.round
    FROM deliveries d JOIN notifications n ON n.id = d.notification_id
    WHERE d.id = :id AND n.tenant = :tenant
""")  # noqa: S608 - the columns are a constant


class DeliveryQueries:
    """Reads deliveries."""

    def __init__(self, reads: TenantReads) -> None:
        self._reads = reads

    async def get(self, tenant: str, delivery_id: UUID) -> DeliveryOfNotification | None:
        """Return the delivery, or None if the tenant has no delivery with this id."""
        row = (await self._reads.execute(tenant, DELIVERY, id=delivery_id)).one_or_none()
        return None if row is None else DeliveryOfNotification.model_validate(row, from_attributes=True)
