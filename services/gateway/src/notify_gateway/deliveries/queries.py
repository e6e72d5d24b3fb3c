"""Read deliveries from PostgreSQL."""

from uuid import UUID

from sqlalchemy import text

from notify_gateway.database import TenantReads
from notify_gateway.deliveries.schemas import CancelReason, DeliveryOfNotification
from notify_gateway.stored_values import representable, short

# PostgreSQL does not check reasons. Those that this version does not know are read as NULL.
DELIVERY_COLUMNS = f"""
    d.id AS delivery_id, d.channel, d.recipient, d.status,
    CASE WHEN d.reason IN ({", ".join(repr(reason.value) for reason in CancelReason)}) THEN d.reason END AS reason,
    {representable("d.updated_at")} AS updated_at
"""
ATTEMPT_COLUMNS = f"""
    a.attempt, a.round, a.outcome, a.error_class, {short("a.error_code")} AS error_code,
    {short("a.error_text")} AS error_text, {short("a.provider_message_id")} AS provider_message_id,
    {representable("a.started_at")} AS started_at, {representable("a.finished_at")} AS finished_at,
    {representable("a.next_attempt_at")} AS next_attempt_at
"""
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
