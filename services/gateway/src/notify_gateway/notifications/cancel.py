"""Cancel those deliveries of a notification that no outbox relay has leased."""

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

from notify_common.contracts.ids import of_the_same_time
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_database.engine import execute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.database import TenantShare
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.outbox.store import status_changes

log = logging.getLogger(__name__)

# The lock on an outbox row ensures that either a cancellation or a relay gets the delivery, but not both. While this
# statement waits for the lock, a retry may move the row to a new round, but the statement still sees the delivery as it
# was before. Therefore it deletes a row only with the delivery that it cancels; otherwise nothing would send the retry.
CANCEL = text("""
    WITH free AS (
        SELECT outbox.delivery_id, outbox.round
        FROM outbox JOIN deliveries ON deliveries.id = outbox.delivery_id
        WHERE deliveries.notification_id = :notification_id AND deliveries.id BETWEEN :first_id AND :last_id
          AND (outbox.leased_until IS NULL OR outbox.leased_until < now())
        ORDER BY outbox.delivery_id
        FOR UPDATE OF outbox
    ), cancelled AS (
        UPDATE deliveries SET status = 'cancelled', reason = 'requested', updated_at = clock_timestamp()
        FROM free
        WHERE deliveries.id = free.delivery_id AND deliveries.round = free.round AND deliveries.status = 'pending'
        RETURNING deliveries.id, deliveries.notification_id, deliveries.channel, deliveries.round, deliveries.attempt,
                  deliveries.updated_at
    ), deleted AS (
        DELETE FROM outbox USING cancelled WHERE outbox.delivery_id = cancelled.id AND outbox.round = cancelled.round
    )
    SELECT * FROM cancelled
""")


def posted_with(principal: Principal) -> str | None:
    """Return the key with which the notifications that `principal` may cancel were posted; None if it may be any."""
    return None if Scope.ADMIN in principal.scopes else principal.api_key_id


class NotificationCanceller:
    """Cancels notifications and publishes the status changes."""

    def __init__(
        self, engine: AsyncEngine, share: TenantShare, publish_changes: Callable[[Sequence[StatusChange]], None]
    ) -> None:
        self._engine = engine
        self._share = share
        self._publish_changes = publish_changes

    async def cancel(self, tenant: str, notification_id: UUID) -> None:
        """Cancel the deliveries that no relay has leased, and delete their outbox rows in the same transaction.

        The caller has checked that the notification belongs to `tenant`. May raise `TooManyInProgress` or
        `DatabaseUnavailable`.
        """
        first_id, last_id = of_the_same_time(notification_id)
        values = {"notification_id": notification_id, "first_id": first_id, "last_id": last_id}
        async with self._share.slot(tenant):
            rows = await execute(self._engine, CANCEL, **values)
        changes = status_changes(rows, DeliveryStatus.CANCELLED)
        log.info("cancelled", extra={"notification_id": str(notification_id), "deliveries": len(changes)})
        self._publish_changes(changes)
