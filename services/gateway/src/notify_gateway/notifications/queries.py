"""Reads: one notification with its story, pages of many. Nothing here writes or commits.

The deliveries of a notification carry its time: by the range of their ids PostgreSQL finds one partition, not all.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

from notify_common.contracts.ids import first_id_at, of_the_same_time, of_the_same_time_sql
from notify_common.contracts.trace_context import trace_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import database_errors, without_transactions
from sqlalchemy import Executable, Row, text
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.deliveries.queries import DELIVERY_COLUMNS, delivery_fields
from notify_gateway.deliveries.schemas import DeliverySummary, DeliveryView
from notify_gateway.notifications.schemas import ListQuery, NotificationPage, NotificationSummary, NotificationView
from notify_gateway.notifications.status import NotificationStatus, has_status_sql, notification_status

DEFAULT_WINDOW = timedelta(hours=24)
USER_LIST_LIMIT = 1000

# By name: a column more must not change the type of a statement that is prepared already.
NOTIFICATION = "n.id, n.user_id, n.message, n.subject, n.metadata, n.created_at, n.send_at, n.expires_at"
STORY = f"""
    SELECT {NOTIFICATION}, n.email, n.traceparent, {DELIVERY_COLUMNS}, story.attempts
    FROM notifications n
    JOIN deliveries d ON d.notification_id = n.id AND d.id BETWEEN :first_id AND :last_id
    CROSS JOIN LATERAL (
        SELECT json_agg(a ORDER BY a.attempt) AS attempts
        FROM attempts a WHERE a.delivery_id = d.id AND a.delivery_id BETWEEN :first_id AND :last_id
    ) AS story
    WHERE n.id = :id AND n.tenant = :tenant
    ORDER BY d.channel
"""  # noqa: S608 - a constant
OF_ITS_NOTIFICATION = f"d.notification_id = n.id AND d.id BETWEEN {of_the_same_time_sql('n.id')}"
PAGE = f"""
    SELECT {NOTIFICATION}, {DELIVERY_COLUMNS}
    FROM (SELECT * FROM notifications n WHERE {{conditions}} ORDER BY id DESC LIMIT :limit) AS n
    JOIN deliveries d ON {OF_ITS_NOTIFICATION}
    ORDER BY n.id DESC, d.channel
"""  # noqa: S608 - the conditions are constants, too


class NotificationQueries:
    """Answers from PostgreSQL, one statement each."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = without_transactions(engine)

    async def get(self, tenant: str, notification_id: UUID) -> NotificationView | None:
        """The tenant's notification with every attempt, or None where there is none."""
        first_id, last_id = of_the_same_time(notification_id)
        rows = await self._rows(STORY, id=notification_id, tenant=tenant, first_id=first_id, last_id=last_id)
        if not rows:
            return None
        deliveries = [DeliveryView(**delivery_fields(row), attempts=row.attempts or []) for row in rows]
        first = rows[0]
        return NotificationView(
            **_notification(first, deliveries),
            email=first.email,
            trace_id=trace_id(first.traceparent),
            deliveries=deliveries,
        )

    async def page(self, tenant: str, query: ListQuery) -> NotificationPage:
        """One page of the tenant's, newest first. A page begins after the last id of the one before."""
        values: dict[str, object] = {"tenant": tenant, "limit": query.limit + 1}
        conditions, its_deliveries = ["n.tenant = :tenant"], OF_ITS_NOTIFICATION
        created_after = query.created_after
        if query.user_id is not None:
            values["user_id"] = query.user_id
            conditions.append("n.user_id = :user_id")
        elif created_after is None:
            created_after = (query.created_before or utc_now()) - DEFAULT_WINDOW
        window = ""
        if created_after is not None:
            values["first_id"] = first_id_at(created_after)
            conditions.append("n.id >= :first_id")
            window += " AND d.notification_id >= :first_id"
        created_before = None if query.created_before is None else first_id_at(query.created_before)
        if ends := [end for end in (created_before, query.cursor) if end is not None]:
            values["end_id"] = min(ends)
            conditions.append("n.id < :end_id")
            window += " AND d.notification_id < :end_id"
        if query.user_id is None:
            # Filters join many: both sides are walked in the order of the notifications' ids, until the page is full.
            # With the ranges of the deliveries' own ids the planner would expect too few to stop there.
            its_deliveries = f"d.notification_id = n.id{window}"
        if query.channel is not None:
            values["channel"] = query.channel.value
            conditions.append(f"EXISTS (SELECT FROM deliveries d WHERE {its_deliveries} AND d.channel = :channel)")
        if query.status is not None:
            conditions.append(has_status_sql(query.status, its_deliveries))
        found = await self._summaries(conditions, **values)
        items = found[: query.limit]
        return NotificationPage(items=items, next_cursor=items[-1].id if len(found) > len(items) else None)

    async def of_user(self, tenant: str, user_id: int, status: NotificationStatus | None) -> list[NotificationSummary]:
        """A user's notifications as the first API lists them."""
        conditions = ["n.tenant = :tenant", "n.user_id = :user_id"]
        if status is not None:
            conditions.append(has_status_sql(status, OF_ITS_NOTIFICATION))
        return await self._summaries(conditions, tenant=tenant, user_id=user_id, limit=USER_LIST_LIMIT)

    async def _summaries(self, conditions: Sequence[str], **values: object) -> list[NotificationSummary]:
        rows = await self._rows(PAGE.format(conditions=" AND ".join(conditions)), **values)
        summaries = []
        for _, group in groupby(rows, key=attrgetter("id")):
            of_one = list(group)
            deliveries = [DeliverySummary(**delivery_fields(row)) for row in of_one]
            summaries.append(NotificationSummary(**_notification(of_one[0], deliveries), deliveries=deliveries))
        return summaries

    async def _rows(self, sql: str, **values: object) -> Sequence[Row[Any]]:
        with database_errors():
            async with self._engine.connect() as connection:
                return (await connection.execute(_statement(sql), values)).all()


@cache
def _statement(sql: str) -> Executable:
    """What SQLAlchemy makes of the text, once for each set of filters."""
    return text(sql).columns(email=JSONB, metadata=JSONB, attempts=JSON)


def _notification(row: Row[Any], deliveries: Sequence[DeliverySummary]) -> dict[str, Any]:
    channels = [delivery.channel for delivery in deliveries]
    return {
        "id": row.id,
        "user_id": row.user_id,
        "message": row.message,
        "type": channels[0] if len(channels) == 1 else None,
        "channels": channels,
        "status": notification_status(delivery.status for delivery in deliveries),
        "subject": row.subject,
        "metadata": row.metadata,
        "created_at": row.created_at,
        "send_at": row.send_at,
        "expires_at": row.expires_at,
    }
