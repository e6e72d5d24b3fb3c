"""Accept notifications: one transaction per batch, then the hand-over to the outbox relay."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import StatusChange
from notify_common.contracts.trace_context import trace_id
from notify_common.runtime.batcher import Batcher
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.engine import database_errors, without_transactions
from notify_database.errors import DataRejected
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.errors import RequestRejected
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.notifications.idempotency import Claim, RecordedResponse, Responses, claim, find_recorded
from notify_gateway.notifications.new_notification import NewNotification, created_json
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import LEASE
from notify_gateway.users.channels import stored_channels

log = logging.getLogger(__name__)

NOTIFICATIONS_PER_TRANSACTION = 500
FLUSH_INTERVAL = 0.01  # seconds

# One statement, so one round trip: a notification without its deliveries and their outbox rows never exists.
ACCEPT = text("""
    WITH accepted AS (
        INSERT INTO notifications
            (id, tenant, user_id, message, subject, email, metadata, created_at, send_at, expires_at,
             traceparent)
        SELECT id, tenant, user_id, message, subject, email::jsonb, metadata::jsonb, created_at, send_at, expires_at,
               traceparent
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:user_ids AS bigint[]), CAST(:messages AS text[]),
            CAST(:subjects AS text[]), CAST(:emails AS text[]), CAST(:metadata AS text[]),
            CAST(:created_at AS timestamptz[]), CAST(:send_at AS timestamptz[]), CAST(:expires_at AS timestamptz[]),
            CAST(:traceparents AS text[])
        ) AS n (id, tenant, user_id, message, subject, email, metadata, created_at, send_at, expires_at, traceparent)
    ), requested AS (
        INSERT INTO deliveries
            (id, notification_id, channel, recipient, status, reason, round, attempt, failures, updated_at)
        SELECT id, notification_id, channel, recipient, status, reason, 1, 0, 0, created_at
        FROM unnest(
            CAST(:delivery_ids AS uuid[]), CAST(:notification_ids AS uuid[]), CAST(:channels AS text[]),
            CAST(:recipients AS text[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),
            CAST(:delivery_created_at AS timestamptz[])
        ) AS d (id, notification_id, channel, recipient, status, reason, created_at)
    )
    INSERT INTO outbox (delivery_id, due_at, leased_until, round)
    SELECT id, coalesce(due_at, now()), CASE WHEN due_at IS NULL THEN now() + CAST(:lease AS interval) END, 1
    FROM unnest(CAST(:wanted_ids AS uuid[]), CAST(:due_at AS timestamptz[])) AS o (id, due_at)
""")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The notification is committed; `response` is its JSON."""

    response: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """An earlier request with the same idempotency key was accepted; `response` is what it got."""

    response: str


@dataclass(frozen=True, slots=True)
class _Submission:
    """A notification that waits for its commit, and the idempotency key that it claims."""

    notification: NewNotification
    claim: Claim | None


@dataclass(frozen=True, slots=True)
class _Committed:
    notification: NewNotification
    response: str | None = None
    """Its JSON, if it was recorded under an idempotency key."""


@dataclass(frozen=True, slots=True)
class _Rejected:
    reason: str
    """`field: detail`."""


_Outcome = _Committed | _Rejected | RecordedResponse


class NotificationIntake:
    """Stores notifications durably, in batches."""

    def __init__(
        self,
        engine: AsyncEngine,
        relay: OutboxRelay,
        *,
        max_waiting: int,
        metrics: GatewayMetrics,
        real_channels: Set[Channel] = frozenset(),
        publish_changes: Callable[[Sequence[StatusChange]], None] = lambda _: None,
        tracing: Tracing = UNTRACED,
    ) -> None:
        self._engine = engine
        self._engine_without_transactions = without_transactions(engine)
        self._relay = relay
        self._metrics = metrics
        self._real_channels = real_channels
        self._publish_changes = publish_changes
        self._tracing = tracing
        self._batcher = Batcher(
            self._flush,
            max_batch=NOTIFICATIONS_PER_TRANSACTION,
            max_waiting=max_waiting,
            flush_interval=FLUSH_INTERVAL,
            rejections=(DataRejected,),
            observe=metrics.accepted_together,
        )

    async def accept(self, notification: NewNotification, claim: Claim | None = None) -> Accepted | Replayed:
        """Return once the notification is committed, or the response that an earlier request with its key got.

        Raises `RequestRejected`, `IdempotencyKeyReused`, `Overloaded`, `DataRejected`, or `DatabaseUnavailable`, after
        which the notification may be stored or not.
        """
        reason = notification.request.rejection_at(notification.created_at)
        if reason is None:
            outcome = await self._batcher.submit(_Submission(notification, claim))
            if isinstance(outcome, _Committed):
                return Accepted(outcome.response or created_json(outcome.notification))
            if isinstance(outcome, RecordedResponse):
                assert claim is not None  # noqa: S101 - only a claim is answered so
                return Replayed(outcome.replay(claim))
            reason = outcome.reason
        # An earlier request with this key may have been accepted while it was still valid.
        recorded = None if claim is None else await find_recorded(self._engine, claim)
        if claim is None or recorded is None:
            raise RequestRejected(reason)
        return Replayed(recorded.replay(claim))

    async def drained(self) -> None:
        """Return when no request waits for its commit."""
        await self._batcher.drained()

    async def _flush(self, batch: Sequence[_Submission]) -> list[_Outcome]:
        due_now = sum(len(each.notification.deliveries) for each in batch if each.notification.due_at is None)
        # Rows that the relay has no room for are left to whichever relay next looks for due rows.
        leased = self._relay.has_room_for(due_now)
        lease_began = time.monotonic()  # before PostgreSQL reads its clock, so that the lease ends here first
        with_keys = any(each.claim is not None for each in batch)
        # Without idempotency keys a single statement writes, which needs no explicit transaction.
        engine = self._engine if with_keys else self._engine_without_transactions
        parents = (each.notification.traceparent for each in batch)
        with self._tracing.group("commit notifications", parents), database_errors():
            async with engine.begin() as connection:
                outcomes = await self._decide(connection, batch)
                new = [outcome.notification for outcome in outcomes if isinstance(outcome, _Committed)]
                if new:
                    await connection.execute(ACCEPT, _columns(new, leased=leased))
        self._committed(new, lease_began if leased else None)
        return outcomes

    async def _decide(self, connection: AsyncConnection, batch: Sequence[_Submission]) -> list[_Outcome]:
        """Resolve the recipients, claim the idempotency keys, and return the outcome of each submission."""
        outcomes: list[_Outcome] = []
        claimed: Responses = {}
        for submission, notification in zip(batch, await _resolve_recipients(connection, batch), strict=True):
            if (reason := notification.missing_recipient(self._real_channels)) is not None:
                outcomes.append(_Rejected(reason))
            elif submission.claim is None:
                outcomes.append(_Committed(notification))
            elif (first := claimed.get(submission.claim.tenant_key)) is not None:
                outcomes.append(first)  # two requests of one batch have the same key
            else:
                response = created_json(notification)
                outcomes.append(_Committed(notification, response))
                claimed[submission.claim.tenant_key] = RecordedResponse(submission.claim.body_hash, response)
        earlier = await claim(connection, claimed) if claimed else {}
        if not earlier:
            return outcomes
        return [
            outcome
            if submission.claim is None or isinstance(outcome, _Rejected)
            else earlier.get(submission.claim.tenant_key, outcome)
            for submission, outcome in zip(batch, outcomes, strict=True)
        ]

    def _committed(self, new: Sequence[NewNotification], lease_began: float | None) -> None:
        if lease_began is not None:
            requests = [request for each in new if each.due_at is None for request in each.wanted()]
            self._relay.hand_over(requests, lease_began)
        for channel, count in Counter(delivery.channel for each in new for delivery in each.deliveries).items():
            self._metrics.accepted[channel].inc(count)
        if log.isEnabledFor(logging.DEBUG):
            for each in new:
                log.debug("accepted", extra={"notification_id": str(each.id), "trace_id": trace_id(each.traceparent)})
        self._publish_changes([change for each in new for change in each.cancelled()])


async def _resolve_recipients(connection: AsyncConnection, batch: Sequence[_Submission]) -> list[NewNotification]:
    """Return the notifications with what is stored of their users' channels."""
    notifications = [each.notification for each in batch]
    stored = await stored_channels(connection, [key for each in notifications for key in each.user_channels()])
    if not stored:  # the common case
        return notifications
    return [
        each.for_user({key[2]: stored[key] for key in each.user_channels() if key in stored}) for each in notifications
    ]


def _columns(group: Sequence[NewNotification], *, leased: bool) -> dict[str, object]:
    of_delivery = [
        (notification, delivery, notification.status_of(delivery))
        for notification in group
        for delivery in notification.deliveries
    ]
    wanted = [(notification, delivery) for notification in group for delivery in notification.wanted()]
    metadata = [notification.request.metadata for notification in group]
    emails = [notification.request.email for notification in group]
    return {
        "ids": [notification.id for notification in group],
        "user_ids": [notification.request.user_id for notification in group],
        "messages": [notification.request.message for notification in group],
        "subjects": [notification.request.subject for notification in group],
        "emails": [None if email is None else email.model_dump_json() for email in emails],
        "metadata": [None if entries is None else json.dumps(entries) for entries in metadata],
        "created_at": [notification.created_at for notification in group],
        "tenants": [notification.tenant for notification in group],
        "send_at": [notification.request.send_at for notification in group],
        "expires_at": [notification.request.expires_at for notification in group],
        "traceparents": [notification.traceparent for notification in group],
        "delivery_ids": [delivery.delivery_id for _, delivery, _ in of_delivery],
        "notification_ids": [delivery.notification_id for _, delivery, _ in of_delivery],
        "channels": [delivery.channel.value for _, delivery, _ in of_delivery],
        "recipients": [delivery.recipient for _, delivery, _ in of_delivery],
        "statuses": [status.value for _, _, (status, _) in of_delivery],
        "reasons": [reason for _, _, (_, reason) in of_delivery],
        "delivery_created_at": [notification.created_at for notification, _, _ in of_delivery],
        "wanted_ids": [delivery.delivery_id for _, delivery in wanted],
        "due_at": [notification.due_at for notification, _ in wanted],
        "lease": LEASE if leased else None,
    }
