"""Accepts notifications: one transaction for all that wait, then the hand-over to the outbox relay."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from notify_common.group_commit import GroupCommit
from notify_common.messages import Content, DeliveryRequested
from notify_common.process import utc_now
from notify_database.engine import StatementRefused, database_errors
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.ids import new_id, to_millisecond
from notify_gateway.outbox import LEASE
from notify_gateway.outbox_relay import OutboxRelay
from notify_gateway.schemas import NotificationRequest

NOTIFICATIONS_PER_TRANSACTION = 500

# One statement, so one round trip: a notification without its deliveries and their outbox rows never exists.
ACCEPT = text("""
    WITH accepted AS (
        INSERT INTO notifications (id, user_id, message, subject, metadata, created_at)
        SELECT id, user_id, message, subject, metadata::jsonb, created_at
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:user_ids AS bigint[]), CAST(:messages AS text[]),
            CAST(:subjects AS text[]), CAST(:metadata AS text[]), CAST(:created_at AS timestamptz[])
        ) AS n (id, user_id, message, subject, metadata, created_at)
    ), requested AS (
        INSERT INTO deliveries
            (id, notification_id, channel, recipient, status, round, attempt, failures, updated_at)
        SELECT id, notification_id, channel, recipient, 'pending', 1, 0, 0, created_at
        FROM unnest(
            CAST(:delivery_ids AS uuid[]), CAST(:notification_ids AS uuid[]), CAST(:channels AS text[]),
            CAST(:recipients AS text[]), CAST(:delivery_created_at AS timestamptz[])
        ) AS d (id, notification_id, channel, recipient, created_at)
    )
    INSERT INTO outbox (delivery_id, due_at, leased_until)
    SELECT id, now(), now() + CAST(:lease AS interval)
    FROM unnest(CAST(:delivery_ids AS uuid[])) AS o (id)
""")


@dataclass(frozen=True, slots=True)
class AcceptedNotification:
    """A valid request with its ids; committed once `NotificationIntake.accept` returns it."""

    id: UUID
    created_at: datetime
    request: NotificationRequest
    deliveries: tuple[DeliveryRequested, ...]


class NotificationIntake:
    """Stores notifications durably, in groups."""

    def __init__(self, engine: AsyncEngine, relay: OutboxRelay, *, max_waiting: int) -> None:
        self._engine = engine
        self._relay = relay
        self._group_commit = GroupCommit(
            self._commit,
            max_group=NOTIFICATIONS_PER_TRANSACTION,
            max_waiting=max_waiting,
            refusals=(StatementRefused,),
        )

    async def accept(self, request: NotificationRequest) -> AcceptedNotification:
        """Return once the notification is committed.

        Raises `WaitingRoomFull`, `DatabaseAway` (it may or may not be stored) or `StatementRefused`.
        """
        notification = _with_ids(request)
        await self._group_commit.submit(notification)
        return notification

    async def drained(self) -> None:
        """Return when no request waits for its commit."""
        await self._group_commit.drained()

    async def _commit(self, group: Sequence[AcceptedNotification]) -> None:
        requests = [request for notification in group for request in notification.deliveries]
        # What the relay has no room for is left to whichever relay looks for due rows next.
        leased = self._relay.has_room_for(len(requests))
        lease_began = time.monotonic()  # before the database's clock is asked: the lease ends here first
        with database_errors():
            async with self._engine.begin() as connection:
                await connection.execute(ACCEPT, _columns(group, requests, leased=leased))
        if leased:
            self._relay.hand_over(requests, lease_began)


def _with_ids(request: NotificationRequest) -> AcceptedNotification:
    created_at = to_millisecond(utc_now())
    notification_id = new_id(created_at)
    content = Content(message=request.message, subject=request.subject)
    return AcceptedNotification(
        id=notification_id,
        created_at=created_at,
        request=request,
        deliveries=tuple(
            DeliveryRequested(
                # The notification's own time: both fall into the same range of ids.
                delivery_id=new_id(created_at),
                notification_id=notification_id,
                user_id=request.user_id,
                channel=channel,
                recipient=request.recipient.of(channel),
                content=content,
            )
            for channel in request.requested_channels()
        ),
    )


def _columns(
    group: Sequence[AcceptedNotification], requests: Sequence[DeliveryRequested], *, leased: bool
) -> dict[str, object]:
    created_at = {notification.id: notification.created_at for notification in group}
    metadata = [notification.request.metadata for notification in group]
    return {
        "ids": [notification.id for notification in group],
        "user_ids": [notification.request.user_id for notification in group],
        "messages": [notification.request.message for notification in group],
        "subjects": [notification.request.subject for notification in group],
        "metadata": [None if entries is None else json.dumps(entries) for entries in metadata],
        "created_at": [notification.created_at for notification in group],
        "delivery_ids": [request.delivery_id for request in requests],
        "notification_ids": [request.notification_id for request in requests],
        "channels": [request.channel.value for request in requests],
        "recipients": [request.recipient for request in requests],
        "delivery_created_at": [created_at[request.notification_id] for request in requests],
        "lease": LEASE if leased else None,
    }
