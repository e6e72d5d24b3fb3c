"""Read deliveries from PostgreSQL."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any
from uuid import UUID

from notify_common.contracts.ids import of_the_same_time, of_the_same_time_sql
from notify_common.contracts.users import user_of
from sqlalchemy import Executable, Row, text
from sqlalchemy.dialects.postgresql import JSON

from notify_gateway.database import TenantReads
from notify_gateway.deliveries.filters import conditions
from notify_gateway.deliveries.schemas import CancelReason, Delivery, DeliveryPage, DeliveryQuery
from notify_gateway.http.fields import Expansion
from notify_gateway.slices import in_slices
from notify_gateway.stored_values import representable, short

LISTED_ATTEMPTS = 100  # of each delivery
PAGE_BYTES = 4_000_000  # of what a page contains on request, as JSON; the item that exceeds it is the last
ATTEMPT_BYTES = 2_000  # an attempt counts as this many; one with a long error text takes as many, and more in memory
REMEMBERED_STATEMENTS = 200  # of each kind of list; filters can be combined in tens of thousands of ways
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
OF_DELIVERY = f"a.delivery_id = d.id AND a.delivery_id BETWEEN {of_the_same_time_sql('d.notification_id')}"
# With this condition, the plan contains only the week of the parameters, and not those of all ids.
OF_KNOWN_DELIVERY = "a.delivery_id = d.id AND a.delivery_id BETWEEN :first_id AND :last_id"


def _history(condition: str) -> str:
    return f"""
        SELECT coalesce(json_agg(a ORDER BY a.attempt), '[]') AS attempts,
               -- Attempts are numbered consecutively, so that the earlier ones need not be counted.
               CASE count(*) WHEN {LISTED_ATTEMPTS} THEN min(a.attempt) - 1 ELSE 0 END AS earlier_attempts
        FROM (
            SELECT {ATTEMPT_COLUMNS} FROM attempts a WHERE {condition} ORDER BY a.attempt DESC LIMIT {LISTED_ATTEMPTS}
        ) AS a
    """  # noqa: S608 - constants


HISTORY, HISTORY_OF_KNOWN = _history(OF_DELIVERY), _history(OF_KNOWN_DELIVERY)
COLUMNS = f"""
    {DELIVERY_COLUMNS}, d.notification_id, d.round, n.user_id, n.user_key,
    CASE WHEN d.status <> 'sent' THEN last.error_class END AS error_class,
    CASE WHEN d.status <> 'sent' THEN {short("last.error_code")} END AS error_code
"""
LAST = """
    LEFT JOIN LATERAL (
        SELECT a.error_class, a.error_code FROM attempts a WHERE {condition} AND a.attempt = d.attempt LIMIT 1
    ) AS last ON true
"""
CONTENT_COLUMNS = "n.message, n.subject"
DELIVERY = f"""
    SELECT {COLUMNS}, {CONTENT_COLUMNS}, history.*
    FROM deliveries d JOIN notifications n ON n.id = d.notification_id AND n.id BETWEEN :first_id AND :last_id
    CROSS JOIN LATERAL ({HISTORY_OF_KNOWN}) AS history
    {LAST.format(condition=OF_KNOWN_DELIVERY)}
    WHERE d.id = :id AND n.tenant = :tenant
"""  # noqa: S608 - a constant
ATTEMPTS_SIZE = f"""
    {ATTEMPT_BYTES} * (
        SELECT count(*) FROM (SELECT FROM attempts a WHERE {OF_DELIVERY} LIMIT {LISTED_ATTEMPTS}) AS listed
    )
"""  # noqa: S608 - a constant
# The tenant's notifications are read in the order of their index, until the page is full. PostgreSQL ends a page after
# `PAGE_BYTES`, so that the rest never takes up the gateway's memory. OFFSET and LIMIT keep the planner from joining all
# deliveries and attempts of the period, or of all time, before it looks at the notifications.
PAGE = f"""
    SELECT d.* {{history_columns}}
    FROM (
        SELECT *,
               lead(id) OVER newest_first IS NOT NULL AS more,
               coalesce(sum(0{{size}}) OVER (newest_first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
                   AS bytes_before
        FROM (
            SELECT d.id, {COLUMNS} {{columns}}
            FROM notifications n
            CROSS JOIN LATERAL (
                SELECT * FROM deliveries
                WHERE notification_id = n.id AND id BETWEEN {of_the_same_time_sql("n.id")}{{weeks_of_deliveries}}
                OFFSET 0
            ) AS d
            {LAST.format(condition=OF_DELIVERY + "{weeks_of_attempts}")}
            WHERE {{conditions}}
            ORDER BY n.id DESC, d.id DESC
            LIMIT :limit
        ) AS d
        WINDOW newest_first AS (ORDER BY notification_id DESC, id DESC)
    ) AS d
    {{history}}
    WHERE d.bytes_before < {PAGE_BYTES}
    ORDER BY d.notification_id DESC, d.id DESC
"""  # noqa: S608 - the conditions are constants, too
AFTER = """
    (n.id, d.id) < ((SELECT notification_id FROM deliveries WHERE id = :cursor), CAST(:cursor AS uuid))
    AND n.id <= (SELECT notification_id FROM deliveries WHERE id = :cursor)
"""
EXPANSIONS = {
    Expansion.CONTENT: {
        "columns": f", {CONTENT_COLUMNS}",
        "size": " + octet_length(json_build_array(message, subject)::text)",
        "history_columns": "",
        "history": "",
    },
    Expansion.ATTEMPTS: {
        "columns": "",
        "size": f" + {ATTEMPTS_SIZE}",
        "history_columns": ", history.*",
        "history": f"CROSS JOIN LATERAL ({HISTORY}) AS history",
    },
}


class DeliveryQueries:
    """Reads deliveries."""

    def __init__(self, reads: TenantReads) -> None:
        self._reads = reads

    async def get(self, tenant: str, delivery_id: UUID) -> Delivery | None:
        """Return the delivery, or None if the tenant has no delivery with this id."""
        first_id, last_id = of_the_same_time(delivery_id)
        values = {"id": delivery_id, "first_id": first_id, "last_id": last_id}
        row = (await self._reads.execute(tenant, delivery_statement(DELIVERY), **values)).one_or_none()
        return None if row is None else _delivery(row)

    async def page(self, tenant: str, query: DeliveryQuery) -> DeliveryPage:
        """Return a page of the tenant's deliveries, starting after the delivery `query.cursor`."""
        filtered = conditions(query)
        wanted, values = [*filtered.on_notifications, *filtered.period("n.id")], filtered.values
        if query.channel is not None:
            wanted.append("d.channel = :channel")
            values["channel"] = query.channel.value
        if query.status:
            wanted.append("d.status = ANY(CAST(:statuses AS text[]))")
            values["statuses"] = [status.value for status in query.status]
        if query.error_class is not None:
            wanted.append("last.error_class = :error_class")
            values["error_class"] = query.error_class.value
        if query.cursor is not None:
            wanted.append(AFTER)
            values["cursor"] = query.cursor
        weeks = {"weeks_of_deliveries": filtered.weeks("id"), "weeks_of_attempts": filtered.weeks("a.delivery_id")}
        statement = delivery_statement(
            PAGE.format(conditions=" AND ".join(wanted), **weeks, **expanded(EXPANSIONS, query.expand))
        )
        # One more delivery than fits on the page is requested, to find out whether there are more.
        values["limit"] = query.limit + 1
        items, more = [], False
        async with self._reads.execute_holding_slot(tenant, statement, values, keep_plan=query.is_plain) as rows:
            async for row in in_slices(islice(rows, query.limit)):
                items.append(_delivery(row))
                more = row.more
        return DeliveryPage(items=items, next_cursor=items[-1].id if more else None, has_more=more)


def expanded(parts: Mapping[Expansion, Mapping[str, str]], wanted: Collection[Expansion]) -> dict[str, str]:
    """Return the parts of a statement that the wanted expansions add; the others are empty."""
    names = next(iter(parts.values()))
    return {name: "".join(parts[each][name] for each in sorted(set(wanted))) for name in names}


@lru_cache(REMEMBERED_STATEMENTS)
def delivery_statement(sql: str) -> Executable:
    """Return a statement that reads deliveries. The latest ones are cached, so that they are not parsed again."""
    return text(sql).columns(attempts=JSON)


def _delivery(row: Row[Any]) -> Delivery:
    fields = row._asdict()
    fields["user_id"] = user_of(fields["user_id"], fields["user_key"])
    return Delivery.model_validate(fields)
