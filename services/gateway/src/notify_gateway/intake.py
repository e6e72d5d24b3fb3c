"""Accepts notifications: one transaction for all that wait, then the hand-over to the outbox relay."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from notify_common.channels import Channel
from notify_common.group_commit import GroupCommit
from notify_common.messages import StatusChange
from notify_common.tracing import UNTRACED, Tracing, trace_id
from notify_database.engine import StatementRefused, database_errors, without_transactions
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.idempotency import Claim, claim_keys, find_answered
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.new_notification import NewNotification, as_accepted
from notify_gateway.outbox import LEASE
from notify_gateway.outbox_relay import OutboxRelay
from notify_gateway.user_channels import channels_of

log = logging.getLogger(__name__)

NOTIFICATIONS_PER_TRANSACTION = 500
GROUP_INTERVAL = 0.01  # seconds

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


class NotNow(Exception):
    """The request does not fit the present time or settings. The message names the field."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client is told, as JSON."""

    told: str
    replayed: bool = False
    """Whether an earlier request with its key was told so."""


@dataclass(slots=True)
class _Submission:
    notification: NewNotification
    claim: Claim | None
    answered: Claim | None = None
    """The earlier request with the same idempotency key, where there was one."""
    problem: str | None = None


class NotificationIntake:
    """Stores notifications durably, in groups."""

    def __init__(
        self,
        engine: AsyncEngine,
        relay: OutboxRelay,
        *,
        max_waiting: int,
        metrics: GatewayMetrics,
        real_channels: Set[Channel] = frozenset(),
        tell: Callable[[Sequence[StatusChange]], None] = lambda _: None,
        tracing: Tracing = UNTRACED,
    ) -> None:
        self._engine = engine
        self._engine_without_transactions = without_transactions(engine)
        self._relay = relay
        self._metrics = metrics
        self._real_channels = real_channels
        self._tell = tell
        self._tracing = tracing
        self._group_commit = GroupCommit(
            self._commit,
            max_group=NOTIFICATIONS_PER_TRANSACTION,
            max_waiting=max_waiting,
            interval=GROUP_INTERVAL,
            refusals=(StatementRefused,),
            observe=metrics.accepted_together,
        )

    async def accept(self, notification: NewNotification, claim: Claim | None = None) -> Answer:
        """Return once the notification is committed; or, where it is a repeat, the answer that the first one got.

        Raises `NotNow`, `KeyReused`, `WaitingRoomFull`, `StatementRefused`, or `DatabaseAway` (stored or not).
        """
        submission = _Submission(notification, claim)
        submission.problem = notification.request.problem_now(notification.created_at)
        if submission.problem is None:
            await self._group_commit.submit(submission)
        if submission.problem is not None:
            # It was none when it was accepted, if it was.
            submission.answered = None if claim is None else await find_answered(self._engine, claim)
            if submission.answered is None:
                raise NotNow(submission.problem)
        if claim is not None and submission.answered is not None:
            return Answer(submission.answered.answer_to(claim), replayed=True)
        return Answer(as_accepted(submission.notification))

    async def drained(self) -> None:
        """Return when no request waits for its commit."""
        await self._group_commit.drained()

    async def _commit(self, group: Sequence[_Submission]) -> None:
        due_now = sum(len(each.notification.deliveries) for each in group if each.notification.due_at is None)
        # What the relay has no room for is left to whichever relay looks for due rows next.
        leased = self._relay.has_room_for(due_now)
        lease_began = time.monotonic()  # before the database's clock is asked: the lease ends here first
        keyed = any(each.claim is not None for each in group)
        # Without keys there is one statement that writes, which needs no transaction around it.
        engine = self._engine if keyed else self._engine_without_transactions
        members = (each.notification.traceparent for each in group)
        with self._tracing.group("commit notifications", members), database_errors():
            async with engine.begin() as connection:
                await self._resolve(connection, group)
                new = await _without_repeats(connection, [each for each in group if each.problem is None])
                if new:
                    await connection.execute(ACCEPT, _columns(new, leased=leased))
        if leased:
            requests = [request for each in new if each.due_at is None for request in each.wanted()]
            self._relay.hand_over(requests, lease_began)
        for channel, count in Counter(delivery.channel for each in new for delivery in each.deliveries).items():
            self._metrics.accepted[channel].inc(count)
        if log.isEnabledFor(logging.DEBUG):
            for each in new:
                log.debug("accepted", extra={"notification_id": str(each.id), "trace_id": trace_id(each.traceparent)})
        self._tell([change for each in new for change in each.cancelled()])

    async def _resolve(self, connection: AsyncConnection, group: Sequence[_Submission]) -> None:
        """Look up whom the notifications reach, and whether that is enough."""
        stored = await channels_of(connection, [key for each in group for key in each.notification.user_channels()])
        for each in group:
            # Where nothing is stored, as mostly, nothing is looked through again.
            if stored:
                found = {key[2]: stored[key] for key in each.notification.user_channels() if key in stored}
                each.notification = each.notification.for_user(found)
            each.problem = each.notification.missing_recipient(self._real_channels)


async def _without_repeats(connection: AsyncConnection, group: Sequence[_Submission]) -> list[NewNotification]:
    """The notifications of the group that no earlier request has asked for; the others learn who has."""
    first: dict[tuple[str, str], Claim] = {}
    for each in group:
        if each.claim is not None:
            each.claim = replace(each.claim, answer=as_accepted(each.notification))
            # Within the group, too, one key is one request.
            each.answered = first.get(each.claim.identity)
            first.setdefault(each.claim.identity, each.claim)
    if first:
        answered = await claim_keys(connection, list(first.values()))
        for each in group:
            if each.claim is not None:
                each.answered = answered.get(each.claim.identity, each.answered)
    return [each.notification for each in group if each.answered is None]


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
