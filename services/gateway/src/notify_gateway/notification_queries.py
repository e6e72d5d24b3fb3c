"""Reads: one notification with its story, pages of many. Nothing here writes or commits."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from notify_common.channels import Channel
from notify_common.messages import DeliveryStatus
from notify_common.process import utc_now
from notify_database.engine import database_errors
from notify_database.id_ranges import first_id_at, of_the_same_time
from notify_database.models import Delivery, Notification
from sqlalchemy import Select, exists, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import selectinload

from notify_gateway.notification_status import (
    NotificationStatus,
    notification_status,
    notification_status_sql,
)
from notify_gateway.schemas import (
    DeliverySummary,
    DeliveryView,
    ListQuery,
    NotificationPage,
    NotificationSummary,
    NotificationView,
)

DEFAULT_WINDOW = timedelta(hours=24)
USER_LIST_LIMIT = 1000


class NotificationQueries:
    """Answers from PostgreSQL; a session lives for one answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, tenant: str, notification_id: UUID) -> NotificationView | None:
        """The tenant's notification with every attempt, or None where there is none."""
        # By the range of their ids, too: one partition in place of all.
        own = Notification.deliveries.and_(Delivery.id.between(*of_the_same_time(notification_id)))
        story = selectinload(own).selectinload(Delivery.attempts)
        with database_errors():
            async with AsyncSession(self._engine) as session:
                notification = await session.get(Notification, notification_id, options=[story])
        if notification is None or notification.tenant != tenant:
            return None
        return NotificationView(
            **_own_fields(notification, notification.deliveries),
            deliveries=[DeliveryView.model_validate(delivery) for delivery in notification.deliveries],
        )

    async def delivery(self, tenant: str, delivery_id: UUID) -> DeliverySummary | None:
        """The tenant's delivery, or None where there is none."""
        statement = (
            select(Delivery)
            .join(Notification, Notification.id == Delivery.notification_id)
            .where(Delivery.id == delivery_id, Notification.tenant == tenant)
        )
        with database_errors():
            async with AsyncSession(self._engine) as session:
                delivery = await session.scalar(statement)
        return None if delivery is None else DeliverySummary.model_validate(delivery)

    async def page(self, tenant: str, query: ListQuery) -> NotificationPage:
        """One page of the tenant's, newest first. A page begins after the last id of the one before."""
        statement = select(Notification).where(Notification.tenant == tenant)
        created_after = query.created_after
        if query.user_id is not None:
            statement = statement.where(Notification.user_id == query.user_id)
        elif created_after is None:
            created_after = (query.created_before or utc_now()) - DEFAULT_WINDOW
        if created_after is not None:
            statement = statement.where(Notification.id >= first_id_at(created_after))
        if query.created_before is not None:
            statement = statement.where(Notification.id < first_id_at(query.created_before))
        if query.cursor is not None:
            statement = statement.where(Notification.id < query.cursor)
        if query.channel is not None:
            over_channel = exists().where(
                Delivery.notification_id == Notification.id, Delivery.channel == query.channel.value
            )
            statement = statement.where(over_channel)
        if query.status is not None:
            statement = statement.where(notification_status_sql() == query.status.value)
        found = await self._summaries(statement, query.limit + 1)
        items = found[: query.limit]
        return NotificationPage(items=items, next_cursor=items[-1].id if len(found) > len(items) else None)

    async def of_user(self, tenant: str, user_id: int, status: NotificationStatus | None) -> list[NotificationSummary]:
        """A user's notifications as the first API lists them."""
        statement = select(Notification).where(Notification.tenant == tenant, Notification.user_id == user_id)
        if status is not None:
            statement = statement.where(notification_status_sql() == status.value)
        return await self._summaries(statement, USER_LIST_LIMIT)

    async def _summaries(self, statement: Select[Notification], limit: int) -> list[NotificationSummary]:
        statement = statement.order_by(Notification.id.desc()).limit(limit)
        with database_errors():
            async with AsyncSession(self._engine) as session:
                notifications = (await session.scalars(statement)).all()
                deliveries = await _deliveries_of(session, notifications)
        return [
            NotificationSummary(
                **_own_fields(notification, deliveries[notification.id]),
                deliveries=[DeliverySummary.model_validate(delivery) for delivery in deliveries[notification.id]],
            )
            for notification in notifications
        ]


async def _deliveries_of(session: AsyncSession, notifications: Sequence[Notification]) -> dict[UUID, list[Delivery]]:
    """Of notifications that are ordered, the newest first."""
    deliveries: dict[UUID, list[Delivery]] = {notification.id: [] for notification in notifications}
    if notifications:
        (first_id, _), (_, last_id) = of_the_same_time(notifications[-1].id), of_the_same_time(notifications[0].id)
        statement = (
            select(Delivery)
            .where(Delivery.notification_id.in_(deliveries), Delivery.id.between(first_id, last_id))
            .order_by(Delivery.channel)
        )
        for delivery in await session.scalars(statement):
            deliveries[delivery.notification_id].append(delivery)
    return deliveries


def _own_fields(notification: Notification, deliveries: Sequence[Delivery]) -> dict[str, object]:
    channels = [Channel(delivery.channel) for delivery in deliveries]
    return {
        "id": notification.id,
        "user_id": notification.user_id,
        "message": notification.message,
        "type": channels[0] if len(channels) == 1 else None,
        "channels": channels,
        "status": notification_status(DeliveryStatus(delivery.status) for delivery in deliveries),
        "subject": notification.subject,
        "metadata": notification.client_metadata,
        "created_at": notification.created_at,
        "send_at": notification.send_at,
        "expires_at": notification.expires_at,
    }
