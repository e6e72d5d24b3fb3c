"""Accept notifications: commit them in batches, then hand their deliveries over to the outbox relay."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, StatusChange
from notify_common.contracts.trace_context import trace_id
from notify_common.errors import Overloaded
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.engine import autocommitting, database_errors
from notify_database.errors import ROW_ERRORS
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
from notify_gateway.notifications.insert import insert, insert_unless_user_channels_exist
from notify_gateway.notifications.new_notification import NewNotification
from notify_gateway.outbox.lease import Lease, lease_clock
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.users.channels import UserChannelKey, stored_channels
from notify_gateway.users.schemas import UserChannel

log = logging.getLogger(__name__)

NOTIFICATIONS_PER_TRANSACTION = 500
BYTES_PER_TRANSACTION = 2 * 1024 * 1024
MAX_WAITING_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a notification was committed, with the response as of the commit."""

    response: str
    replayed: bool = False
    """True if an earlier request with the same idempotency key created the notification."""


@dataclass(frozen=True, slots=True)
class _WaitingNotification:
    """A notification that is waiting to be committed, and its claim to an idempotency key."""

    notification: NewNotification
    render: Callable[[NewNotification], str]
    """Renders the response."""
    claim: Claim | None
    rejection: str | None
    """Why the request is invalid, as `field: detail`, so that it can only replay an earlier response; else None."""


@dataclass(frozen=True, slots=True)
class _New:
    """A notification to store."""

    notification: NewNotification
    response: str | None = None
    """The rendered response, if it is recorded under an idempotency key."""


@dataclass(frozen=True, slots=True)
class _Rejected:
    reason: str
    """`field: detail`."""


_Outcome = _New | _Rejected | RecordedResponse


class _Stored(NamedTuple):
    """The result of storing a batch."""

    outcomes: list[_Outcome]
    """One for each notification of the batch."""
    new: Sequence[NewNotification] = ()
    to_hand_over: Sequence[DeliveryRequested] = ()
    """The deliveries whose outbox rows are leased to our relay."""
    leased_until: datetime | None = None
    """When the lease on these rows ends, according to PostgreSQL; None if nothing is stored."""


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
        # Usually, either most users have stored user channels, or none has. As long as none has, batches are stored
        # without a look-up, which saves a round trip: the statement that stores a batch checks that there are none.
        self._user_channels_exist = False
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
        render: Callable[[NewNotification], str] = created_json,
        *,
        size: int = 0,
    ) -> Receipt:
        """Return once the notification, or an earlier one with the same idempotency key, is committed.

        `render` returns the response, and `size` is the length of the request in bytes.

        Raises `RequestRejected`, `IdempotencyKeyReused`, `Overloaded`, `DataRejected` or `DatabaseUnavailable`. After
        `DatabaseUnavailable`, the notification may have been committed.
        """
        rejection = rejection_at(notification.request, notification.created_at)
        if rejection and claim is None:
            raise RequestRejected(rejection)
        waiting = _WaitingNotification(notification, render, claim, rejection)
        outcome = await self._batcher.submit(waiting, size=size, tenant=notification.tenant)
        if isinstance(outcome, _Rejected):
            raise RequestRejected(outcome.reason)
        if isinstance(outcome, _New):
            return Receipt(outcome.response or render(outcome.notification))
        assert claim is not None  # noqa: S101 - recorded responses are found only by a claim
        return Receipt(outcome.replay(claim), replayed=True)

    async def drained(self) -> None:
        """Wait until no notification is waiting to be committed."""
        await self._batcher.drained()

    async def _flush(self, batch: Sequence[_WaitingNotification]) -> list[_Outcome]:
        # The leases in the rows begin with the transaction. The clock is read before it, so that this process never
        # relies on a lease that has ended.
        lease_began = lease_clock()
        # Without idempotency keys, there is a single write, which needs no explicit transaction.
        has_claims = any(each.claim is not None for each in batch)
        engine = self._engine if has_claims else self._autocommitting_engine
        parents = (each.notification.traceparent for each in batch)
        with self._tracing.group("commit notifications", parents), database_errors():
            async with engine.begin() as connection:
                stored = None
                # With idempotency keys, the look-up must come first: the keys are written before the notifications
                # are, together with the responses, which depend on the stored user channels.
                if not has_claims and not self._user_channels_exist:
                    stored = await self._store_unless_user_channels_exist(connection, batch)
                if stored is None:
                    stored = await self._look_up_user_channels_and_store(connection, batch)
        if stored.leased_until is not None:
            self._relay.hand_over(stored.to_hand_over, Lease.beginning(lease_began, stored.leased_until))
        self._after_commit(stored.new)
        return stored.outcomes

    async def _store_unless_user_channels_exist(
        self, connection: AsyncConnection, batch: Sequence[_WaitingNotification]
    ) -> _Stored | None:
        """Store the new notifications of a batch without idempotency keys, in one round trip.

        Return None, and store nothing, if the stored user channels must be looked up first.
        """
        outcomes, _ = self._decide(batch, user_channels={})
        new = _new_notifications(outcomes)
        if not new:
            return None  # all of them lack a recipient, which may be stored
        channels, to_hand_over = self._to_lease(new)
        # The keys of rejected notifications are checked as well, because the missing recipient may be stored.
        keys = _user_channel_keys(batch)
        leased_until = await insert_unless_user_channels_exist(connection, new, channels, keys)
        if leased_until is None:
            return None
        return _Stored(outcomes, new, to_hand_over, leased_until)

    async def _look_up_user_channels_and_store(
        self, connection: AsyncConnection, batch: Sequence[_WaitingNotification]
    ) -> _Stored:
        user_channels = await stored_channels(connection, _user_channel_keys(batch))
        self._user_channels_exist = bool(user_channels)
        outcomes, to_claim = self._decide(batch, user_channels)
        outcomes = await _claim_or_replay(connection, batch, outcomes, to_claim)
        new = _new_notifications(outcomes)
        if not new:
            return _Stored(outcomes)
        channels, to_hand_over = self._to_lease(new)
        leased_until = await insert(connection, new, channels)
        return _Stored(outcomes, new, to_hand_over, leased_until)

    def _to_lease(self, new: Sequence[NewNotification]) -> tuple[Set[Channel], list[DeliveryRequested]]:
        """Return the channels for which our relay has room, and the deliveries over them that are due now.

        The other deliveries get no lease, so that any relay may take them.
        """
        due_now = [delivery for each in new if each.due_at is None for delivery in each.to_send()]
        channels = self._relay.channels_with_room(due_now)
        return channels, [delivery for delivery in due_now if delivery.channel in channels]

    def _decide(
        self, batch: Sequence[_WaitingNotification], user_channels: Mapping[UserChannelKey, UserChannel]
    ) -> tuple[list[_Outcome], Responses]:
        """Resolve the recipients. Return each notification's outcome, and the responses to record by idempotency key.

        For requests that repeat those of earlier batches, `_claim_or_replay` replaces the outcomes.
        """
        outcomes: list[_Outcome] = []
        to_claim: Responses = {}
        for waiting in batch:
            notification, claim = waiting.notification, waiting.claim
            if user_channels:
                notification = notification.with_user_channels(user_channels)
            if reason := waiting.rejection or notification.missing_recipient(self._real_channels):
                outcomes.append(_Rejected(reason))
            elif claim is None:
                outcomes.append(_New(notification))
            elif (first := to_claim.get(claim.tenant_key)) is not None:
                outcomes.append(first)  # the key occurs twice in this batch
            else:
                response = waiting.render(notification)
                outcomes.append(_New(notification, response))
                to_claim[claim.tenant_key] = RecordedResponse(claim.body_hash, response)
        return outcomes, to_claim

    def _after_commit(self, new: Sequence[NewNotification]) -> None:
        for channel, count in Counter(delivery.channel for each in new for delivery in each.deliveries).items():
            self._metrics.accepted[channel].inc(count)
        if log.isEnabledFor(logging.DEBUG):
            for each in new:
                log.debug("accepted", extra={"notification_id": str(each.id), "trace_id": trace_id(each.traceparent)})
        self._publish_changes([change for each in new for change in each.opt_out_changes()])


async def _claim_or_replay(
    connection: AsyncConnection,
    batch: Sequence[_WaitingNotification],
    outcomes: list[_Outcome],
    to_claim: Responses,
) -> list[_Outcome]:
    """Record the responses under their idempotency keys. Return the outcomes, with earlier responses to repetitions."""
    taken = await claim_keys(connection, to_claim) if to_claim else set()
    # A rejected request may repeat one that was accepted, for example because its times were still valid then.
    to_look_up = {
        position: each.claim
        for position, (each, outcome) in enumerate(zip(batch, outcomes, strict=True))
        if each.claim is not None and (isinstance(outcome, _Rejected) or each.claim.tenant_key in taken)
    }
    if not to_look_up:
        return outcomes
    recorded = await find_recorded(connection, to_look_up.values())
    replayed = {position: recorded[claim] for position, claim in to_look_up.items() if claim in recorded}
    return [replayed.get(position, outcome) for position, outcome in enumerate(outcomes)]


def _new_notifications(outcomes: Sequence[_Outcome]) -> list[NewNotification]:
    return [outcome.notification for outcome in outcomes if isinstance(outcome, _New)]


def _user_channel_keys(batch: Sequence[_WaitingNotification]) -> list[UserChannelKey]:
    return [key for each in batch for key in each.notification.user_channel_keys()]
