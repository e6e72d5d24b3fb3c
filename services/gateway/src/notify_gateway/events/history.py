"""Changes of status as PostgreSQL knows them: whose they are, and which somebody has missed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_database.engine import database_errors, without_transactions
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.errors import TooManyMissed
from notify_gateway.events.schemas import StatusEvent

# Of two changes the earlier can be the last to be committed: who has seen one looks back so far.
OVERLAP = timedelta(seconds=5)
MOST_MISSED = 20_000
MOST_LOOKED_AT = 100_000  # deliveries, whose ever they are
LOOKS = 2  # at a time: those who come back must not take the connections of those who post

# All between two ids: the planner looks into the partitions of their time only.
OWNERS = text("""
    SELECT id, tenant, user_id FROM notifications
    WHERE id = ANY(CAST(:ids AS uuid[])) AND id BETWEEN :first_id AND :last_id
""")
CHANGED = text("""
    SELECT count(*) FROM (SELECT FROM deliveries WHERE updated_at >= :since LIMIT :limit) AS changed
""")
SINCE = text("""
    SELECT d.id, d.notification_id, n.user_id, d.channel, d.status, d.round, d.attempt, d.updated_at,
           a.error_class, a.error_code
    FROM deliveries d
    JOIN notifications n ON n.id = d.notification_id
    LEFT JOIN attempts a ON a.delivery_id = d.id AND a.attempt = d.attempt AND d.status IN ('retrying', 'failed')
    WHERE d.updated_at >= :since AND (d.status <> 'pending' OR d.round > 1) AND n.tenant = :tenant
      AND (CAST(:user_id AS bigint) IS NULL OR n.user_id = :user_id)
      AND (CAST(:notification_id AS uuid) IS NULL OR n.id = :notification_id)
      AND (CAST(:channel AS text) IS NULL OR d.channel = :channel)
    ORDER BY d.updated_at
    LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which changes somebody wants to hear of."""

    tenant: str
    user_id: int | None = None
    notification_id: UUID | None = None
    channel: Channel | None = None

    def includes(self, tenant: str, event: StatusEvent) -> bool:
        """Whether the event, which is of `tenant`, is one of them."""
        return (
            self.tenant == tenant
            and self.user_id in {None, event.user_id}
            and self.notification_id in {None, event.notification_id}
            and self.channel in {None, event.channel}
        )


class EventHistory:
    """The statements; they raise `DatabaseUnavailable`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = without_transactions(engine)
        self._looking = asyncio.Semaphore(LOOKS)

    async def now(self) -> datetime:
        """PostgreSQL's time: what changes from here on is later than this, but for `OVERLAP`."""
        with database_errors():
            async with self._looking, self._engine.connect() as connection:
                told: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
        return told

    async def events(self, changes: Sequence[StatusChange]) -> list[tuple[str, StatusEvent]]:
        """The changes with the tenants and users whose they are."""
        ids = sorted({change.notification_id for change in changes})
        if not ids:
            return []
        with database_errors():
            async with self._engine.connect() as connection:
                parameters = {"ids": ids, "first_id": ids[0], "last_id": ids[-1]}
                rows = (await connection.execute(OWNERS, parameters)).all()
        owners = {row.id: (row.tenant, row.user_id) for row in rows}
        return [
            (owner[0], StatusEvent.model_construct(**vars(change), user_id=owner[1]))
            for change in changes
            if (owner := owners.get(change.notification_id)) is not None
        ]

    async def since(self, position: datetime, wanted: EventFilter) -> list[StatusEvent]:
        """What each delivery has come to that has changed since, oldest first; raises `TooManyMissed`."""
        parameters = {
            "since": position - OVERLAP, "limit": MOST_MISSED + 1, "tenant": wanted.tenant, "user_id": wanted.user_id,
            "notification_id": wanted.notification_id, "channel": wanted.channel,
        }  # fmt: skip
        bound = {"since": parameters["since"], "limit": MOST_LOOKED_AT + 1}
        with database_errors():
            async with self._looking, self._engine.connect() as connection:
                if (await connection.execute(CHANGED, bound)).scalar_one() > MOST_LOOKED_AT:
                    raise TooManyMissed
                rows = (await connection.execute(SINCE, parameters)).all()
        if len(rows) > MOST_MISSED:
            raise TooManyMissed
        return [
            StatusEvent(
                delivery_id=row.id,
                notification_id=row.notification_id,
                user_id=row.user_id,
                channel=row.channel,
                status=DeliveryStatus(row.status),
                round=row.round,
                attempt=row.attempt,
                error_class=row.error_class,
                error_code=row.error_code,
                changed_at=row.updated_at,
            )
            for row in rows
        ]
