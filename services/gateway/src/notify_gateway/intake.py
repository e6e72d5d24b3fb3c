"""Accepts notifications: one transaction for all that wait, then the hand-over to the outbox relay."""

import json
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from notify_common.channels import Channel
from notify_common.group_commit import GroupCommit
from notify_common.messages import Content, DeliveryRequested
from notify_common.process import utc_now
from notify_database.engine import StatementRefused, database_errors, without_transactions
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.idempotency import Claim, claim_keys, find_answered
from notify_gateway.ids import new_id, to_millisecond
from notify_gateway.outbox import LEASE
from notify_gateway.outbox_relay import OutboxRelay
from notify_gateway.schemas import NotificationRequest

NOTIFICATIONS_PER_TRANSACTION = 500
GROUP_INTERVAL = 0.01  # seconds

# One statement, so one round trip: a notification without its deliveries and their outbox rows never exists.
ACCEPT = text("""
    WITH accepted AS (
        INSERT INTO notifications
            (id, tenant, user_id, message, subject, metadata, created_at, send_at, expires_at)
        SELECT id, tenant, user_id, message, subject, metadata::jsonb, created_at, send_at, expires_at
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:user_ids AS bigint[]), CAST(:messages AS text[]),
            CAST(:subjects AS text[]), CAST(:metadata AS text[]), CAST(:created_at AS timestamptz[]),
            CAST(:send_at AS timestamptz[]), CAST(:expires_at AS timestamptz[])
        ) AS n (id, tenant, user_id, message, subject, metadata, created_at, send_at, expires_at)
    ), requested AS (
        INSERT INTO deliveries
            (id, notification_id, channel, recipient, status, round, attempt, failures, updated_at)
        SELECT id, notification_id, channel, recipient, 'pending', 1, 0, 0, created_at
        FROM unnest(
            CAST(:delivery_ids AS uuid[]), CAST(:notification_ids AS uuid[]), CAST(:channels AS text[]),
            CAST(:recipients AS text[]), CAST(:delivery_created_at AS timestamptz[])
        ) AS d (id, notification_id, channel, recipient, created_at)
    )
    INSERT INTO outbox (delivery_id, due_at, leased_until, round)
    SELECT id, coalesce(due_at, now()), CASE WHEN due_at IS NULL THEN now() + CAST(:lease AS interval) END, 1
    FROM unnest(CAST(:delivery_ids AS uuid[]), CAST(:due_at AS timestamptz[])) AS o (id, due_at)
""")


class NotNow(Exception):
    """The request does not fit the present time or settings. The message names the field."""


@dataclass(frozen=True, slots=True)
class NewNotification:
    """A valid request with its ids, not committed yet."""

    id: UUID
    tenant: str
    created_at: datetime
    request: NotificationRequest
    deliveries: tuple[DeliveryRequested, ...]

    @property
    def due_at(self) -> datetime | None:
        """When it is to be sent; None: at once."""
        send_at = self.request.send_at
        return send_at if send_at is not None and send_at > self.created_at else None


@dataclass(slots=True)
class _Submission:
    notification: NewNotification
    claim: Claim | None
    answered: Claim | None = None
    """The earlier request with the same idempotency key, where there was one."""


class NotificationIntake:
    """Stores notifications durably, in groups."""

    def __init__(
        self,
        engine: AsyncEngine,
        relay: OutboxRelay,
        *,
        max_waiting: int,
        real_channels: Set[Channel] = frozenset(),
    ) -> None:
        self._engine = engine
        self._engine_without_transactions = without_transactions(engine)
        self._relay = relay
        self._real_channels = real_channels
        self._group_commit = GroupCommit(
            self._commit,
            max_group=NOTIFICATIONS_PER_TRANSACTION,
            max_waiting=max_waiting,
            interval=GROUP_INTERVAL,
            refusals=(StatementRefused,),
        )

    async def accept(self, notification: NewNotification, claim: Claim | None = None) -> str | None:
        """Return once the notification is committed; or, where it is a repeat, the answer that the first one got.

        Raises `NotNow`, `KeyReused`, `WaitingRoomFull`, `StatementRefused`, or `DatabaseAway` (stored or not).
        """
        problem = notification.request.problem_now(notification.created_at, self._real_channels)
        if problem is not None:
            # It was none when it was accepted, if it was.
            answered = None if claim is None else await find_answered(self._engine, claim)
            if claim is None or answered is None:
                raise NotNow(problem)
            return answered.answer_to(claim)
        submission = _Submission(notification, claim)
        await self._group_commit.submit(submission)
        if claim is None or submission.answered is None:
            return None
        return submission.answered.answer_to(claim)

    async def drained(self) -> None:
        """Return when no request waits for its commit."""
        await self._group_commit.drained()

    async def _commit(self, group: Sequence[_Submission]) -> None:
        due_now = sum(len(each.notification.deliveries) for each in group if each.notification.due_at is None)
        # What the relay has no room for is left to whichever relay looks for due rows next.
        leased = self._relay.has_room_for(due_now)
        lease_began = time.monotonic()  # before the database's clock is asked: the lease ends here first
        with database_errors():
            if any(each.claim is not None for each in group):
                async with self._engine.begin() as connection:
                    new = await _without_repeats(connection, group)
                    if new:
                        await connection.execute(ACCEPT, _columns(new, leased=leased))
            else:
                new = [each.notification for each in group]
                async with self._engine_without_transactions.connect() as connection:
                    await connection.execute(ACCEPT, _columns(new, leased=leased))
        if leased:
            requests = [request for each in new if each.due_at is None for request in each.deliveries]
            self._relay.hand_over(requests, lease_began)


async def _without_repeats(connection: AsyncConnection, group: Sequence[_Submission]) -> list[NewNotification]:
    """The notifications of the group that no earlier request has asked for; the others learn who has."""
    first: dict[tuple[str, str], Claim] = {}
    for each in group:
        if each.claim is not None:
            # Within the group, too, one key is one request.
            each.answered = first.get(each.claim.identity)
            first.setdefault(each.claim.identity, each.claim)
    if first:
        answered = await claim_keys(connection, list(first.values()))
        for each in group:
            if each.claim is not None:
                each.answered = answered.get(each.claim.identity, each.answered)
    return [each.notification for each in group if each.answered is None]


def new_notification(request: NotificationRequest, tenant: str) -> NewNotification:
    """Give the request its ids and its time."""
    created_at = to_millisecond(utc_now())
    notification_id = new_id(created_at)
    content = Content(message=request.message, subject=request.subject)
    return NewNotification(
        id=notification_id,
        tenant=tenant,
        created_at=created_at,
        request=request,
        deliveries=tuple(
            DeliveryRequested(
                # The notification's own time: that is where its deliveries are looked for.
                delivery_id=new_id(created_at),
                notification_id=notification_id,
                user_id=request.user_id,
                channel=channel,
                recipient=request.recipient.of(channel),
                content=content,
                expires_at=request.expires_at,
            )
            for channel in request.requested_channels()
        ),
    )


def _columns(group: Sequence[NewNotification], *, leased: bool) -> dict[str, object]:
    of_delivery = [(notification, request) for notification in group for request in notification.deliveries]
    requests = [request for _, request in of_delivery]
    metadata = [notification.request.metadata for notification in group]
    return {
        "ids": [notification.id for notification in group],
        "user_ids": [notification.request.user_id for notification in group],
        "messages": [notification.request.message for notification in group],
        "subjects": [notification.request.subject for notification in group],
        "metadata": [None if entries is None else json.dumps(entries) for entries in metadata],
        "created_at": [notification.created_at for notification in group],
        "tenants": [notification.tenant for notification in group],
        "send_at": [notification.request.send_at for notification in group],
        "expires_at": [notification.request.expires_at for notification in group],
        "delivery_ids": [request.delivery_id for request in requests],
        "notification_ids": [request.notification_id for request in requests],
        "channels": [request.channel.value for request in requests],
        "recipients": [request.recipient for request in requests],
        "delivery_created_at": [notification.created_at for notification, _ in of_delivery],
        "due_at": [notification.due_at for notification, _ in of_delivery],
        "lease": LEASE if leased else None,
    }
