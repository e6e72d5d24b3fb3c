"""Accept notifications: commit them in batches, then hand their deliveries over to the outbox relay."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import StatusChange
from notify_common.contracts.trace_context import trace_id
from notify_common.errors import Overloaded
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.engine import autocommitting, database_errors
from notify_database.errors import ROW_ERRORS
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.errors import RequestRejected
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.notifications.content import rejection_at
from notify_gateway.notifications.created import created_json
from notify_gateway.notifications.idempotency import (
    Claim,
    RecordedResponse,
    Responses,
    claim_keys,
    find_recorded,
)
from notify_gateway.notifications.new_notification import NewNotification
from notify_gateway.outbox.lease import LEASE, Lease, lease_clock
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.users.channels import stored_channels

log = logging.getLogger(__name__)

NOTIFICATIONS_PER_TRANSACTION = 500
BYTES_PER_TRANSACTION = 2 * 1024 * 1024
MAX_WAITING_BYTES = 16 * 1024 * 1024

# This is a single statement, so that a batch takes one round trip, and no notification is stored without its deliveries
# and their outbox rows.
ACCEPT = text("""
    WITH accepted AS (
        INSERT INTO notifications
            (id, tenant, user_id, user_key, reference, message, subject, email, metadata, created_at, send_at,
             expires_at, traceparent, api_key_id, test)
        SELECT id, tenant, user_id, user_key, reference, message, subject, email::jsonb, metadata::jsonb, created_at,
               send_at, expires_at, traceparent, api_key_id, test
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:user_ids AS bigint[]), CAST(:user_keys AS text[]),
            CAST(:references AS text[]), CAST(:messages AS text[]), CAST(:subjects AS text[]), CAST(:emails AS text[]),
            CAST(:metadata AS text[]), CAST(:created_at AS timestamptz[]), CAST(:send_at AS timestamptz[]),
            CAST(:expires_at AS timestamptz[]), CAST(:traceparents AS text[]), CAST(:api_key_ids AS uuid[]),
            CAST(:tests AS boolean[])
        ) AS n (id, tenant, user_id, user_key, reference, message, subject, email, metadata, created_at, send_at,
                expires_at, traceparent, api_key_id, test)
    ), new_deliveries AS (
        INSERT INTO deliveries
            (id, notification_id, channel, recipient, status, reason, round, attempt, failures, updated_at)
        SELECT id, notification_id, channel, recipient, status, reason, 1, 0, 0, created_at
        FROM unnest(
            CAST(:delivery_ids AS uuid[]), CAST(:notification_ids AS uuid[]), CAST(:channels AS text[]),
            CAST(:recipients AS text[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),
            CAST(:delivery_created_at AS timestamptz[])
        ) AS d (id, notification_id, channel, recipient, status, reason, created_at)
    ), queued AS (
        INSERT INTO outbox (delivery_id, due_at, leased_until, round, channel)
        -- Any relay may take a row without a lease.
        SELECT id, coalesce(due_at, now()),
               CASE WHEN due_at IS NULL AND channel = ANY(CAST(:leased_channels AS text[]))
                   THEN now() + CAST(:lease AS interval) END,
               1, channel
        FROM unnest(
            CAST(:outbox_ids AS uuid[]), CAST(:due_at AS timestamptz[]), CAST(:outbox_channels AS text[])
        ) AS o (id, due_at, channel)
    )
    SELECT now() + CAST(:lease AS interval) AS leased_until
""")


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a notification was committed, with its JSON at the time of the commit."""

    response: str
    replayed: bool = False
    """True if an earlier request with the same idempotency key created the notification."""


@dataclass(frozen=True, slots=True)
class _Submission:
    """A notification that is waiting to be committed, and its claim to an idempotency key."""

    notification: NewNotification
    created_json: Callable[[NewNotification], str]
    """Renders the response."""
    claim: Claim | None
    rejection: str | None
    """Why the request is invalid, as `field: detail`, so that it can only replay an earlier response; else None."""


@dataclass(frozen=True, slots=True)
class _Committed:
    notification: NewNotification
    response: str | None = None
    """The notification's JSON, if it was recorded under an idempotency key."""


@dataclass(frozen=True, slots=True)
class _Rejected:
    reason: str
    """`field: detail`."""


_Outcome = _Committed | _Rejected | RecordedResponse


class NotificationIntake:
    """Commits notifications in batches, which the tenants share fairly."""

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
        self._autocommitting_engine = autocommitting(engine)
        self._relay = relay
        self._metrics = metrics
        self._real_channels = real_channels
        self._publish_changes = publish_changes
        self._tracing = tracing
        self._batcher = Batcher(
            self._flush,
            max_batch=NOTIFICATIONS_PER_TRANSACTION,
            max_batch_bytes=BYTES_PER_TRANSACTION,
            max_waiting=max_waiting,
            max_waiting_bytes=MAX_WAITING_BYTES,
            fair=True,
            interval_after=interval_after,
            rejections=ROW_ERRORS,
            observe=metrics.observe_accepted_batch,
        )

    def require_room(self, tenant: str, size: int) -> None:
        """Raise `Overloaded` if a request of the tenant with `size` bytes would be refused now."""
        if not self._batcher.has_room(size, tenant):
            raise Overloaded

    async def accept(
        self,
        notification: NewNotification,
        claim: Claim | None = None,
        created_json: Callable[[NewNotification], str] = created_json,
        *,
        size: int = 0,
    ) -> Receipt:
        """Return once the notification, or an earlier one with the same idempotency key, is committed.

        `created_json` renders the response, and `size` is the length of the request in bytes.

        Raises `RequestRejected`, `IdempotencyKeyReused`, `Overloaded`, `DataRejected` or `DatabaseUnavailable`. After
        `DatabaseUnavailable`, the notification may have been committed.
        """
        rejection = rejection_at(notification.request, notification.created_at)
        if rejection and claim is None:
            raise RequestRejected(rejection)
        submission = _Submission(notification, created_json, claim, rejection)
        outcome = await self._batcher.submit(submission, size=size, tenant=notification.tenant)
        if isinstance(outcome, _Rejected):
            raise RequestRejected(outcome.reason)
        if isinstance(outcome, _Committed):
            return Receipt(outcome.response or created_json(outcome.notification))
        assert claim is not None  # noqa: S101 - recorded responses are found only by a claim
        return Receipt(outcome.replay(claim), replayed=True)

    async def drained(self) -> None:
        """Wait until no notification is waiting to be committed."""
        await self._batcher.drained()

    async def _flush(self, batch: Sequence[_Submission]) -> list[_Outcome]:
        lease: Lease | None = None
        lease_began = lease_clock()  # read before the rows' lease begins, so that ours ends first
        # Without idempotency keys, there is a single write, which needs no explicit transaction.
        has_claims = any(each.claim is not None for each in batch)
        engine = self._engine if has_claims else self._autocommitting_engine
        parents = (each.notification.traceparent for each in batch)
        with self._tracing.group("commit notifications", parents), database_errors():
            async with engine.begin() as connection:
                outcomes = await self._decide(connection, batch)
                new = [outcome.notification for outcome in outcomes if isinstance(outcome, _Committed)]
                due_now = [delivery for each in new if each.due_at is None for delivery in each.to_send()]
                # The deliveries for which our relay has no room get no lease, so that any relay may take them.
                leased = self._relay.channels_with_room(due_now)
                if new:
                    accepted = await connection.execute(ACCEPT, _parameters(new, leased))
                    lease = Lease.beginning(lease_began, accepted.scalar_one())
        if lease is not None:
            self._relay.hand_over([delivery for delivery in due_now if delivery.channel in leased], lease)
        self._after_commit(new)
        return outcomes

    async def _decide(self, connection: AsyncConnection, batch: Sequence[_Submission]) -> list[_Outcome]:
        """Resolve the recipients, claim the idempotency keys, and return the outcome of each submission."""
        outcomes: list[_Outcome] = []
        claimed: Responses = {}
        notifications = [each.notification for each in batch]
        keys = [key for each in notifications for key in each.user_channel_keys()]
        if stored := await stored_channels(connection, keys):
            notifications = [each.with_user_channels(stored) for each in notifications]
        for submission, notification in zip(batch, notifications, strict=True):
            if reason := submission.rejection or notification.missing_recipient(self._real_channels):
                outcomes.append(_Rejected(reason))
            elif submission.claim is None:
                outcomes.append(_Committed(notification))
            elif (first := claimed.get(submission.claim.tenant_key)) is not None:
                outcomes.append(first)  # the key occurs twice in this batch
            else:
                response = submission.created_json(notification)
                outcomes.append(_Committed(notification, response))
                claimed[submission.claim.tenant_key] = RecordedResponse(submission.claim.body_hash, response)
        taken = await claim_keys(connection, claimed) if claimed else set()
        # An earlier request with the key of a rejected one may have been accepted while it was still valid.
        repeats = [
            claim if claim is not None and (isinstance(outcome, _Rejected) or claim.tenant_key in taken) else None
            for claim, outcome in zip((each.claim for each in batch), outcomes, strict=True)
        ]
        if not (claims := [claim for claim in repeats if claim is not None]):
            return outcomes
        recorded = await find_recorded(connection, claims)
        return [
            outcome if claim is None else recorded.get(claim, outcome)
            for claim, outcome in zip(repeats, outcomes, strict=True)
        ]

    def _after_commit(self, new: Sequence[NewNotification]) -> None:
        for channel, count in Counter(delivery.channel for each in new for delivery in each.deliveries).items():
            self._metrics.accepted[channel].inc(count)
        if log.isEnabledFor(logging.DEBUG):
            for each in new:
                log.debug("accepted", extra={"notification_id": str(each.id), "trace_id": trace_id(each.traceparent)})
        self._publish_changes([change for each in new for change in each.opt_out_changes()])


def _parameters(new: Sequence[NewNotification], leased: Set[Channel]) -> dict[str, object]:
    bodies = [each.request for each in new]
    deliveries = [(each, delivery, *each.status_of(delivery)) for each in new for delivery in each.deliveries]
    to_send = [(each, delivery) for each in new for delivery in each.to_send()]
    return {
        "ids": [each.id for each in new],
        "tenants": [each.tenant for each in new],
        "user_ids": [each.deliveries[0].user_id for each in new],
        "user_keys": [each.deliveries[0].user_key for each in new],
        "messages": [body.message for body in bodies],
        "subjects": [body.subject for body in bodies],
        "references": [body.reference for body in bodies],
        "emails": [body.email_options and body.email_options.model_dump_json() for body in bodies],
        "metadata": [None if body.metadata is None else json.dumps(body.metadata) for body in bodies],
        "created_at": [each.created_at for each in new],
        "send_at": [body.send_at for body in bodies],
        "expires_at": [body.expires_at for body in bodies],
        "traceparents": [each.traceparent for each in new],
        "api_key_ids": [each.api_key_id for each in new],
        "tests": [each.test for each in new],
        "delivery_ids": [delivery.delivery_id for _, delivery, _, _ in deliveries],
        "notification_ids": [delivery.notification_id for _, delivery, _, _ in deliveries],
        "channels": [delivery.channel.value for _, delivery, _, _ in deliveries],
        "recipients": [delivery.recipient for _, delivery, _, _ in deliveries],
        "statuses": [status.value for _, _, status, _ in deliveries],
        "reasons": [reason for _, _, _, reason in deliveries],
        "delivery_created_at": [each.created_at for each, _, _, _ in deliveries],
        "outbox_ids": [delivery.delivery_id for _, delivery in to_send],
        "due_at": [each.due_at for each, _ in to_send],
        "outbox_channels": [delivery.channel.value for _, delivery in to_send],
        "leased_channels": [channel.value for channel in leased],
        "lease": LEASE,
    }
