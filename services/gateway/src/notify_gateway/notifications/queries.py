"""Read notifications from PostgreSQL.

The ids of a notification's deliveries carry the notification's time. Statements therefore look for them in a range of
ids, so that PostgreSQL searches one partition instead of all.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from itertools import groupby, islice
from operator import attrgetter
from typing import Any
from uuid import UUID

from notify_common.contracts.ids import first_id_at, of_the_same_time, of_the_same_time_sql
from notify_common.contracts.trace_context import trace_id
from notify_common.runtime.clock import utc_now
from sqlalchemy import Executable, Row, text
from sqlalchemy.dialects.postgresql import JSON, JSONB

from notify_gateway.database import TenantReads
from notify_gateway.deliveries.queries import ATTEMPT_COLUMNS, DELIVERY_COLUMNS
from notify_gateway.deliveries.schemas import DeliverySummary, DeliveryView
from notify_gateway.notifications.schemas import ListQuery, NotificationPage, NotificationSummary, NotificationView
from notify_gateway.notifications.status import NotificationStatus, has_status_sql, notification_status
from notify_gateway.slices import in_slices

DEFAULT_WINDOW = timedelta(hours=24)
USER_LIST_LIMIT = 1000
LISTED_ATTEMPTS = 100  # of each delivery
PAGE_BYTES = 4_000_000  # of messages, subjects and metadata, as JSON; the notification that exceeds it is the last

# The columns are listed, so that a new column does not change the result type of prepared statements.
NOTIFICATION_COLUMNS = (
    "n.id, n.user_id, n.message, n.subject, n.metadata, n.created_at, n.send_at, n.expires_at, n.test"
)
NOTIFICATION_WITH_ATTEMPTS = f"""
    SELECT {NOTIFICATION_COLUMNS}, n.email, n.traceparent, {DELIVERY_COLUMNS}, history.attempts,
           history.earlier_attempts
    FROM notifications n
    JOIN deliveries d ON d.notification_id = n.id AND d.id BETWEEN :first_id AND :last_id
    CROSS JOIN LATERAL (
        SELECT coalesce(json_agg(a ORDER BY a.attempt), '[]') AS attempts,
               -- Attempts are numbered consecutively, so that the earlier ones need not be counted.
               CASE count(*) WHEN {LISTED_ATTEMPTS} THEN min(a.attempt) - 1 ELSE 0 END AS earlier_attempts
        FROM (
            SELECT {ATTEMPT_COLUMNS}
            FROM attempts a WHERE a.delivery_id = d.id AND a.delivery_id BETWEEN :first_id AND :last_id
            ORDER BY a.attempt DESC LIMIT {LISTED_ATTEMPTS}
        ) AS a
    ) AS history
    WHERE n.id = :id AND n.tenant = :tenant
      AND (CAST(:posted_with AS uuid) IS NULL OR n.api_key_id = CAST(:posted_with AS uuid))
    ORDER BY d.channel
"""  # noqa: S608 - a constant
OF_NOTIFICATION = f"d.notification_id = n.id AND d.id BETWEEN {of_the_same_time_sql('n.id')}"
# PostgreSQL ends a page after `PAGE_BYTES`, so that the rest never takes up the gateway's memory.
PAGE = f"""
    SELECT {NOTIFICATION_COLUMNS}, n.more, {DELIVERY_COLUMNS}
    FROM (
        SELECT *,
               lead(id) OVER newest_first IS NOT NULL AS more,
               coalesce(sum(octet_length(json_build_array(message, subject, metadata)::text))
                   OVER (newest_first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before
        FROM (SELECT * FROM notifications n WHERE {{conditions}} ORDER BY id DESC LIMIT :limit) AS limited
        WINDOW newest_first AS (ORDER BY id DESC)
    ) AS n
    JOIN deliveries d ON {OF_NOTIFICATION}
    WHERE n.bytes_before < {PAGE_BYTES}
    ORDER BY n.id DESC, d.channel
"""  # noqa: S608 - the conditions are constants, too


class NotificationQueries:
    """Reads notifications, with one statement per query."""

    def __init__(self, reads: TenantReads) -> None:
        self._reads = reads

    async def get(
        self, tenant: str, notification_id: UUID, *, posted_with: str | None = None
    ) -> NotificationView | None:
        """Return the notification with its latest attempts, or None if the tenant has no notification with this id.

        If `posted_with` is the id of an API key, a notification that was not posted with that key counts as unknown.
        """
        first_id, last_id = of_the_same_time(notification_id)
        values = {"id": notification_id, "first_id": first_id, "last_id": last_id, "posted_with": posted_with}
        rows = (await self._reads.execute(tenant, _statement(NOTIFICATION_WITH_ATTEMPTS), **values)).all()
        if not rows:
            return None
        deliveries = [DeliveryView.model_validate(row, from_attributes=True) for row in rows]
        fields = _notification_fields(rows[0], deliveries)
        return NotificationView.model_validate({**fields, "trace_id": trace_id(rows[0].traceparent)})

    async def page(self, tenant: str, query: ListQuery) -> NotificationPage:
        """Return a page of the tenant's notifications, newest first, starting after the id `query.cursor`."""
        values: dict[str, object] = {}
        conditions, window = ["n.tenant = :tenant"], ["d.notification_id = n.id"]
        created_after = query.created_after
        if query.user_id is not None:
            values["user_id"] = query.user_id
            conditions.append("n.user_id = :user_id")
        elif created_after is None:
            created_after = (query.created_before or utc_now()) - DEFAULT_WINDOW
        if created_after is not None:
            values["first_id"] = first_id_at(created_after)
            conditions.append("n.id >= :first_id")
            window.append("d.notification_id >= :first_id")
        created_before = None if query.created_before is None else first_id_at(query.created_before)
        if ends := [end for end in (created_before, query.cursor) if end is not None]:
            values["end_id"] = min(ends)
            conditions.append("n.id < :end_id")
            window.append("d.notification_id < :end_id")
        # Without a user id, PostgreSQL should scan both tables by notification id until the page is full. With the
        # condition `OF_NOTIFICATION`, the planner would expect too few matches to choose that plan.
        join = " AND ".join(window) if query.user_id is None else OF_NOTIFICATION
        if query.channel is not None:
            values["channel"] = query.channel.value
            conditions.append(f"EXISTS (SELECT FROM deliveries d WHERE {join} AND d.channel = :channel)")
        if query.status is not None:
            conditions.append(has_status_sql(query.status, join))
        items, more = await self._newest(tenant, conditions, query.limit, **values)
        return NotificationPage(items=items, next_cursor=items[-1].id if more else None)

    async def list_of_user(
        self, tenant: str, user_id: int, status: NotificationStatus | None
    ) -> list[NotificationSummary]:
        """Return the user's latest notifications, newest first; if `status` is None, with any status.

        There are at most `USER_LIST_LIMIT`, or fewer if they are large (`PAGE_BYTES`).
        """
        conditions = ["n.tenant = :tenant", "n.user_id = :user_id"]
        if status is not None:
            conditions.append(has_status_sql(status, OF_NOTIFICATION))
        summaries, _ = await self._newest(tenant, conditions, USER_LIST_LIMIT, user_id=user_id)
        return summaries

    async def _newest(
        self, tenant: str, conditions: Sequence[str], limit: int, **values: object
    ) -> tuple[list[NotificationSummary], bool]:
        """Return the newest matching notifications, and whether there are more."""
        statement = _statement(PAGE.format(conditions=" AND ".join(conditions)))
        # One more notification than fits on the page is requested, to find out whether there are more.
        summaries, more = [], False
        async with self._reads.result(tenant, statement, limit=limit + 1, **values) as rows:
            async for _, group in in_slices(islice(groupby(rows, key=attrgetter("id")), limit)):
                of_notification = list(group)
                deliveries = [DeliverySummary.model_validate(row, from_attributes=True) for row in of_notification]
                fields = _notification_fields(of_notification[0], deliveries)
                summaries.append(NotificationSummary.model_validate(fields))
                more = of_notification[0].more
        return summaries, more


@cache
def _statement(sql: str) -> Executable:
    # The statement for each combination of filters is cached, so that SQLAlchemy parses it only once.
    return text(sql).columns(email=JSONB, metadata=JSONB, attempts=JSON)


def _notification_fields(row: Row[Any], deliveries: Sequence[DeliverySummary]) -> dict[str, Any]:
    channels = [delivery.channel for delivery in deliveries]
    return {
        **row._asdict(),
        "type": channels[0] if len(channels) == 1 else None,
        "channels": channels,
        "status": notification_status(delivery.status for delivery in deliveries),
        "deliveries": deliveries,
    }
