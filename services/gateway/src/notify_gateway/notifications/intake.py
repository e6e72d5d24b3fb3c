"""Accept notifications: commit them in batches, then hand their deliveries over to the outbox relay."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
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
from notify_gateway.notifications.insert import insert, insert_unless_settings_exist
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
    """Proof that a notification was committed, with its JSON at the time of the commit."""

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
    """The notification's JSON, if it is recorded under an idempotency key."""


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
    lease: Lease | None = None
    """The lease on these rows; None if nothing is stored."""


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
        # Usually, either most users have stored settings, or none has. As long as none has, batches are stored without
        # a look-up, which saves a round trip: the statement that stores a batch checks that its users have none.
        self._users_have_settings = False
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
                if not has_claims and not self._users_have_settings:
                    stored = await self._store_unless_settings_exist(connection, batch, lease_began)
                if stored is None:
                    stored = await self._look_up_settings_and_store(connection, batch, lease_began)
        if stored.lease is not None:
            self._relay.hand_over(stored.to_hand_over, stored.lease)
        self._after_commit(stored.new)
        return stored.outcomes

    async def _store_unless_settings_exist(
        self, connection: AsyncConnection, batch: Sequence[_WaitingNotification], lease_began: float
    ) -> _Stored | None:
        """Store the batch's new notifications in one round trip.

        Return None, and store nothing, if the settings of their users must be looked up first.
        """
        outcomes = await self._decide(connection, batch, settings={})
        new = _new_notifications(outcomes)
        if not new:
            return None  # all of them lack a recipient, which may be in the settings
        channels, to_hand_over = self._to_lease(new)
        leased_until = await insert_unless_settings_exist(connection, new, channels, _user_channel_keys(batch))
        if leased_until is None:
            return None
        return _Stored(outcomes, new, to_hand_over, Lease.beginning(lease_began, leased_until))

    async def _look_up_settings_and_store(
        self, connection: AsyncConnection, batch: Sequence[_WaitingNotification], lease_began: float
    ) -> _Stored:
        settings = await stored_channels(connection, _user_channel_keys(batch))
        self._users_have_settings = bool(settings)
        outcomes = await self._decide(connection, batch, settings)
        new = _new_notifications(outcomes)
        if not new:
            return _Stored(outcomes)
        channels, to_hand_over = self._to_lease(new)
        leased_until = await insert(connection, new, channels)
        return _Stored(outcomes, new, to_hand_over, Lease.beginning(lease_began, leased_until))

    def _to_lease(self, new: Sequence[NewNotification]) -> tuple[Set[Channel], list[DeliveryRequested]]:
        """Return the channels for which our relay has room, and the deliveries over them that are due now.

        The other deliveries get no lease, so that any relay may take them.
        """
        due_now = [delivery for each in new if each.due_at is None for delivery in each.to_send()]
        channels = self._relay.channels_with_room(due_now)
        return channels, [delivery for delivery in due_now if delivery.channel in channels]

    async def _decide(
        self,
        connection: AsyncConnection,
        batch: Sequence[_WaitingNotification],
        settings: Mapping[UserChannelKey, UserChannel],
    ) -> list[_Outcome]:
        """Resolve the recipients, and return the outcome of each notification.

        This also writes the idempotency keys with their responses: a request whose key cannot be written is a
        repetition. For a batch without keys, it does not use the database.
        """
        outcomes: list[_Outcome] = []
        to_claim: Responses = {}
        for waiting in batch:
            notification, claim = waiting.notification, waiting.claim
            if settings:
                notification = notification.with_user_channels(settings)
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
        taken = await claim_keys(connection, to_claim) if to_claim else set()
        # A rejected request may repeat one that was accepted, for example because its times were still valid then.
        to_look_up = [
            claim if claim is not None and (isinstance(outcome, _Rejected) or claim.tenant_key in taken) else None
            for claim, outcome in zip((each.claim for each in batch), outcomes, strict=True)
        ]
        if not (claims := [claim for claim in to_look_up if claim is not None]):
            return outcomes
        recorded = await find_recorded(connection, claims)
        return [
            outcome if claim is None else recorded.get(claim, outcome)
            for claim, outcome in zip(to_look_up, outcomes, strict=True)
        ]

    def _after_commit(self, new: Sequence[NewNotification]) -> None:
        for channel, count in Counter(delivery.channel for each in new for delivery in each.deliveries).items():
            self._metrics.accepted[channel].inc(count)
        if log.isEnabledFor(logging.DEBUG):
            for each in new:
                log.debug("accepted", extra={"notification_id": str(each.id), "trace_id": trace_id(each.traceparent)})
        self._publish_changes([change for each in new for change in each.opt_out_changes()])


def _new_notifications(outcomes: Sequence[_Outcome]) -> list[NewNotification]:
    return [outcome.notification for outcome in outcomes if isinstance(outcome, _New)]


def _user_channel_keys(batch: Sequence[_WaitingNotification]) -> list[UserChannelKey]:
    return [key for each in batch for key in each.notification.user_channel_keys()]
