"""Read notifications from PostgreSQL.

The ids of a notification's deliveries carry the notification's time. Statements therefore look for them in a range of
ids, so that PostgreSQL searches one partition instead of all.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby, islice
from operator import attrgetter
from typing import Any
from uuid import UUID

from notify_common.contracts.ids import of_the_same_time, of_the_same_time_sql
from notify_common.contracts.trace_context import trace_id
from notify_common.contracts.users import user_of
from sqlalchemy import Executable, Row, text
from sqlalchemy.dialects.postgresql import JSON, JSONB

from notify_gateway.database import TenantReads
from notify_gateway.deliveries.filters import Conditions, conditions
from notify_gateway.deliveries.queries import (
    ATTEMPTS_SIZE,
    DELIVERY_COLUMNS,
    HISTORY,
    HISTORY_OF_KNOWN,
    PAGE_BYTES,
    REMEMBERED_STATEMENTS,
    expanded,
)
from notify_gateway.deliveries.schemas import NotificationDelivery
from notify_gateway.http.fields import Expansion
from notify_gateway.notifications.schemas import ListQuery, Notification, NotificationPage
from notify_gateway.notifications.status import has_status_sql, notification_status
from notify_gateway.slices import in_slices

# The columns are listed, so that a new column does not change the result type of prepared statements.
NOTIFICATION_COLUMNS = (
    "n.id, n.user_id, n.user_key, n.reference, n.metadata, n.created_at, n.send_at, n.expires_at, n.test, n.traceparent"
)
CONTENT_COLUMNS = "n.message, n.subject, n.email"
NOTIFICATION_WITH_ATTEMPTS = f"""
    SELECT {NOTIFICATION_COLUMNS}, {CONTENT_COLUMNS}, {DELIVERY_COLUMNS}, history.*
    FROM notifications n
    JOIN deliveries d ON d.notification_id = n.id AND d.id BETWEEN :first_id AND :last_id
    CROSS JOIN LATERAL ({HISTORY_OF_KNOWN}) AS history
    WHERE n.id = :id AND n.tenant = :tenant
      AND (CAST(:posted_with AS uuid) IS NULL OR n.api_key_id = CAST(:posted_with AS uuid))
    ORDER BY d.channel
"""  # noqa: S608 - a constant
OF_NOTIFICATION = f"d.notification_id = n.id AND d.id BETWEEN {of_the_same_time_sql('n.id')}"
ATTEMPTS_OF_NOTIFICATION = f"(SELECT sum({ATTEMPTS_SIZE}) FROM deliveries d WHERE {OF_NOTIFICATION})"  # noqa: S608 - a constant
# PostgreSQL ends a page after `PAGE_BYTES`, so that the rest never takes up the gateway's memory.
PAGE = f"""
    SELECT {NOTIFICATION_COLUMNS}, n.more, {DELIVERY_COLUMNS} {{columns}}
    FROM (
        SELECT *,
               lead(id) OVER newest_first IS NOT NULL AS more,
               coalesce(sum(octet_length(json_build_array({{content}}metadata)::text){{attempts}})
                   OVER (newest_first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before
        FROM (SELECT * FROM notifications n WHERE {{conditions}} ORDER BY id DESC LIMIT :limit) AS n
        WINDOW newest_first AS (ORDER BY id DESC)
    ) AS n
    JOIN deliveries d ON {OF_NOTIFICATION}{{weeks}}
    {{history}}
    WHERE n.bytes_before < {PAGE_BYTES}
    ORDER BY n.id DESC, d.channel
"""  # noqa: S608 - the conditions are constants, too
# A channel or a status is looked up notification by notification if there are few: PostgreSQL cannot turn the aggregate
# into a join, in which it would scan the deliveries of all tenants. If there are many, such a scan takes less time.
HAVE = f"(SELECT {{conditions}} FROM deliveries d WHERE {OF_NOTIFICATION}{{weeks}})"  # noqa: S608 - constants
COUNT = "SELECT count(*) FROM (SELECT FROM notifications n WHERE n.tenant = :tenant{period} LIMIT :few) AS n"
FEW = 10_000  # looking up the deliveries of so many takes less than 0.1 s
EXPANSIONS = {
    Expansion.CONTENT: {
        "columns": f", {CONTENT_COLUMNS}",
        "content": "message, subject, email, ",
        "attempts": "",
        "history": "",
    },
    Expansion.ATTEMPTS: {
        "columns": ", history.*",
        "content": "",
        "attempts": f" + {ATTEMPTS_OF_NOTIFICATION}",
        "history": f"CROSS JOIN LATERAL ({HISTORY}) AS history",
    },
}


class NotificationQueries:
    """Reads notifications, with one statement per query."""

    def __init__(self, reads: TenantReads) -> None:
        self._reads = reads

    async def get(self, tenant: str, notification_id: UUID, *, posted_with: str | None = None) -> Notification | None:
        """Return the notification with its latest attempts, or None if the tenant has no notification with this id.

        If `posted_with` is the id of an API key, a notification that was not posted with that key counts as unknown.
        """
        first_id, last_id = of_the_same_time(notification_id)
        values = {"id": notification_id, "first_id": first_id, "last_id": last_id, "posted_with": posted_with}
        rows = (await self._reads.execute(tenant, notification_statement(NOTIFICATION_WITH_ATTEMPTS), **values)).all()
        return _notification(rows) if rows else None

    async def page(self, tenant: str, query: ListQuery, *, integer_users: bool = False) -> NotificationPage:
        """Return a page of the tenant's notifications, newest first, starting after the id `query.cursor`.

        If `integer_users` is set, leave out those of users whose ids are not integers.
        """
        filtered = conditions(query, query.cursor)
        wanted, values = [*filtered.on_notifications, *filtered.period("n.id")], filtered.values
        if integer_users:
            wanted.append("n.user_key IS NULL")
        if query.channel is not None or query.status:
            if query.channel is not None:
                values["channel"] = query.channel.value
            few = query.is_narrow or await self._are_few(tenant, filtered)
            wanted.append(_by_look_up(query, filtered) if few else _by_scan(query, filtered))
        parts = {"weeks": filtered.weeks("d.id"), **expanded(EXPANSIONS, query.expand)}
        statement = notification_statement(PAGE.format(conditions=" AND ".join(wanted), **parts))
        # One more notification than fits on the page is requested, to find out whether there are more.
        values["limit"] = query.limit + 1
        items, more = [], False
        async with self._reads.execute_holding_slot(tenant, statement, values, keep_plan=query.is_plain) as rows:
            async for _, group in in_slices(islice(groupby(rows, key=attrgetter("id")), query.limit)):
                of_notification = list(group)
                items.append(_notification(of_notification))
                more = of_notification[0].more
        return NotificationPage(items=items, next_cursor=items[-1].id if more else None, has_more=more)

    async def _are_few(self, tenant: str, filtered: Conditions) -> bool:
        """Return True if few of the tenant's notifications are in the period."""
        statement = notification_statement(
            COUNT.format(period="".join(f" AND {each}" for each in filtered.period("n.id")))
        )
        bounds = {name: value for name, value in filtered.values.items() if name in {"first_id", "end_id"}}
        counted = await self._reads.execute(tenant, statement, few=FEW, **bounds)
        return bool(counted.scalar_one() < FEW)


def _by_look_up(query: ListQuery, filtered: Conditions) -> str:
    """Return a condition on the deliveries for which those of each notification are looked up."""
    return HAVE.format(conditions=_on_deliveries(query, "bool_or({})".format), weeks=filtered.weeks("d.id"))


def _by_scan(query: ListQuery, filtered: Conditions) -> str:
    """Return a condition on the deliveries for which PostgreSQL scans those of the period."""
    join = " AND ".join(["d.notification_id = n.id", *filtered.period("d.notification_id")])
    return _on_deliveries(query, f"EXISTS (SELECT FROM deliveries d WHERE {join} AND {{}})".format)


def _on_deliveries(query: ListQuery, any_delivery: Callable[[str], str]) -> str:
    wanted = [] if query.channel is None else [any_delivery("d.channel = :channel")]
    if query.status:
        rules = (has_status_sql(status, any_delivery) for status in sorted(set(query.status)))
        wanted.append(f"({' OR '.join(rules)})")
    return " AND ".join(wanted)


@lru_cache(REMEMBERED_STATEMENTS)
def notification_statement(sql: str) -> Executable:
    """Return a statement that reads notifications. The latest ones are cached, so that they are not parsed again."""
    return text(sql).columns(email=JSONB, metadata=JSONB, attempts=JSON)


def _notification(rows: Sequence[Row[Any]]) -> Notification:
    """Return the notification that has these rows, one for each delivery."""
    deliveries = [NotificationDelivery.model_validate(row, from_attributes=True) for row in rows]
    fields = rows[0]._asdict()
    email = fields.get("email")
    return Notification.model_validate(
        {
            **fields,
            "user_id": user_of(fields["user_id"], fields["user_key"]),
            "overrides": None if email is None else {"email": email},
            "trace_id": trace_id(fields["traceparent"]),
            "channels": [delivery.channel for delivery in deliveries],
            "status": notification_status(delivery.status for delivery in deliveries),
            "deliveries": deliveries,
        }
    )
