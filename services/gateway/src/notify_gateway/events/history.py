"""Look up in PostgreSQL who owns a status change, and which changes a subscriber has missed."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import StatusChange
from notify_common.contracts.users import UserColumns, user_columns, user_of
from notify_database.engine import autocommitting, execute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.database import TenantReads, TenantSlots
from notify_gateway.errors import ReadTimedOut, TooManyMissed
from notify_gateway.events.schemas import StatusEvent
from notify_gateway.slices import in_slices
from notify_gateway.stored_values import short

# A change may be committed after another one with a later timestamp, so a replay starts this much earlier.
OVERLAP = timedelta(seconds=5)
MAX_REPLAYED = 20_000
MAX_SCANNED = 100_000  # changed deliveries, across all tenants
CONCURRENT_REPLAYS = 2  # each holds up to `MAX_REPLAYED` rows in memory
CONCURRENT_REPLAYS_PER_TENANT = 1

# The range of ids is there because PostgreSQL cannot prune partitions by `ANY`.
OWNERS = text("""
    SELECT id, tenant, user_id, user_key FROM notifications
    WHERE id = ANY(CAST(:ids AS uuid[])) AND id BETWEEN :first_id AND :last_id
""")
CHANGED = text("SELECT count(*) FROM (SELECT FROM deliveries WHERE updated_at >= :since LIMIT :limit) AS changed")
# No event gets a later time than now, because subscribers resume from its time.
SINCE = text(f"""
    SELECT d.id AS delivery_id, d.notification_id, coalesce(n.user_key, n.user_id::text) AS user_id,
           d.channel, d.status, d.round, d.attempt, a.error_class,
           {short("a.error_code")} AS error_code, least(d.updated_at, clock_timestamp()) AS changed_at
    FROM deliveries d
    JOIN notifications n ON n.id = d.notification_id
    LEFT JOIN attempts a ON a.delivery_id = d.id AND a.attempt = d.attempt AND d.status IN ('retrying', 'failed')
    WHERE d.updated_at >= :since AND (d.status <> 'pending' OR d.round > 1) AND n.tenant = :tenant
      AND (CAST(:user_id AS bigint) IS NULL
           OR n.user_id = :user_id AND n.user_key IS NOT DISTINCT FROM CAST(:user_key AS text))
      AND (NOT CAST(:integer_users AS boolean) OR n.user_key IS NULL)
      AND (CAST(:notification_id AS uuid) IS NULL OR n.id = :notification_id)
      AND (CAST(:channel AS text) IS NULL OR d.channel = :channel)
    ORDER BY d.updated_at
    LIMIT :limit
""")  # noqa: S608 - the expression is a constant


@dataclass(frozen=True, slots=True)
class EventFilter:
    """A subscriber's tenant and the optional filters in its request."""

    tenant: str
    user: str | None = None
    notification_id: UUID | None = None
    channel: Channel | None = None
    integer_users: bool = False
    """True if the client knows only users whose ids are integers."""

    def matches(self, tenant: str, event: StatusEvent) -> bool:
        """Return whether an event of `tenant` matches."""
        return (
            self.tenant == tenant
            and self.user in {None, event.user_id}
            and not (self.integer_users and user_columns(event.user_id).user_key)
            and self.notification_id in {None, event.notification_id}
            and self.channel in {None, event.channel}
        )


class EventHistory:
    """Reads status changes from PostgreSQL; every method may raise `DatabaseUnavailable`.

    `engine` serves the look-ups for live events, which must not wait for slow reads.
    """

    def __init__(self, engine: AsyncEngine, reads: TenantReads) -> None:
        self._engine = autocommitting(engine)
        self._reads = reads
        self._replaying = asyncio.Semaphore(CONCURRENT_REPLAYS)
        self._tenants_replaying = TenantSlots(CONCURRENT_REPLAYS_PER_TENANT)

    async def now(self, tenant: str) -> datetime:
        """Return PostgreSQL's current time, which is the position of a subscriber that has missed nothing."""
        now: datetime = (await self._reads.execute(tenant, text("SELECT now()"))).scalar_one()
        return now

    async def events(self, changes: Sequence[StatusChange]) -> list[tuple[str, StatusEvent]]:
        """Return a pair of tenant and event for each change; skip changes to unknown notifications."""
        ids = sorted({change.notification_id for change in changes})
        if not ids:
            return []
        rows = await execute(self._engine, OWNERS, ids=ids, first_id=ids[0], last_id=ids[-1])
        owners = {row.id: (row.tenant, user_of(row.user_id, row.user_key)) for row in rows}
        return [
            (owner[0], StatusEvent.model_construct(**vars(change), user_id=owner[1]))
            for change in changes
            if (owner := owners.get(change.notification_id)) is not None
        ]

    async def since(
        self, position: datetime, event_filter: EventFilter, render: Callable[[StatusEvent], bytes]
    ) -> list[bytes]:
        """Render the latest state of deliveries changed since `position`, oldest first; may raise `TooManyMissed`."""
        since = position - OVERLAP
        filters = asdict(event_filter)
        tenant, user = filters.pop("tenant"), filters.pop("user")
        filters |= dict.fromkeys(UserColumns._fields) if user is None else user_columns(user)._asdict()
        try:
            async with self._tenants_replaying.of(tenant), self._replaying:
                changed = await self._reads.execute(tenant, CHANGED, since=since, limit=MAX_SCANNED + 1)
                if changed.scalar_one() > MAX_SCANNED:
                    raise TooManyMissed
                found = await self._reads.execute(tenant, SINCE, since=since, limit=MAX_REPLAYED + 1, **filters)
                # The events are built one at a time, because all of them together take more memory than their rows.
                rendered = [
                    render(StatusEvent.model_validate(row, from_attributes=True)) async for row in in_slices(found)
                ]
        except ReadTimedOut:
            raise TooManyMissed from None
        if len(rendered) > MAX_REPLAYED:
            raise TooManyMissed
        return rendered
