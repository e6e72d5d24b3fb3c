"""A notification that has been requested but not yet committed."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id, to_millisecond
from notify_common.contracts.messages import Content, DeliveryRequested, DeliveryStatus, StatusChange
from notify_common.contracts.users import user_columns
from notify_common.runtime.clock import utc_now

from notify_gateway.deliveries.schemas import CancelReason
from notify_gateway.notifications.content import RequestedNotification
from notify_gateway.users.channels import UserChannelKey
from notify_gateway.users.schemas import UserChannel


@dataclass(frozen=True, slots=True)
class NewNotification:
    """A valid request that is not committed yet, with the ids of its notification and deliveries."""

    id: UUID
    tenant: str
    created_at: datetime
    request: RequestedNotification
    deliveries: tuple[DeliveryRequested, ...]
    traceparent: str | None = None
    """The trace context of the request."""
    api_key_id: str | None = None
    """The id of the API key it was posted with; None if authentication is off."""
    test: bool = False
    """True if a test key posted it, so that its deliveries are only simulated."""
    opted_out: Set[Channel] = frozenset()
    """The channels that the user has opted out of; their deliveries are stored as cancelled."""

    @property
    def due_at(self) -> datetime | None:
        """The scheduled time; None if the notification is due now."""
        send_at = self.request.send_at
        return send_at if send_at is not None and send_at > self.created_at else None

    def user_channel_keys(self) -> list[UserChannelKey]:
        """Return the keys under which a recipient or an opt-out of the user may be stored."""
        return [(self.tenant, self.request.user, delivery.channel) for delivery in self.deliveries]

    def status_of(self, delivery: DeliveryRequested) -> tuple[DeliveryStatus, CancelReason | None]:
        """Return the initial status of a delivery, and the reason if that is `cancelled`."""
        if delivery.channel in self.opted_out:
            return DeliveryStatus.CANCELLED, CancelReason.OPTED_OUT
        return DeliveryStatus.PENDING, None

    def to_send(self) -> list[DeliveryRequested]:
        """Return the deliveries over channels that the user has not opted out of."""
        return [delivery for delivery in self.deliveries if delivery.channel not in self.opted_out]

    def opt_out_changes(self) -> list[StatusChange]:
        """Return the status changes of the deliveries that an opt-out cancels."""
        return [
            StatusChange.model_validate(
                {**vars(delivery), "status": DeliveryStatus.CANCELLED, "attempt": 0, "changed_at": self.created_at}
            )
            for delivery in self.deliveries
            if delivery.channel in self.opted_out
        ]

    def with_user_channels(self, stored: Mapping[UserChannelKey, UserChannel]) -> "NewNotification":
        """Return a copy with the user's opt-outs, and with stored recipients for channels that lack one."""
        channels = {key[2]: stored[key] for key in self.user_channel_keys() if key in stored}
        return replace(
            self,
            deliveries=tuple(
                delivery.model_copy(update={"recipient": channels[delivery.channel].recipient})
                if delivery.recipient is None and delivery.channel in channels
                else delivery
                for delivery in self.deliveries
            ),
            opted_out={channel for channel, settings in channels.items() if settings.opted_out},
        )

    def missing_recipient(self, real_channels: Set[Channel]) -> str | None:
        """Return `field: reason` if a delivery over one of `real_channels` has no recipient, otherwise None."""
        if self.test:
            return None
        for delivery in self.to_send():
            if delivery.channel in real_channels and delivery.recipient is None:
                field = self.request.recipients_field
                return f"{field}.{delivery.channel}: is required, because {delivery.channel} is not simulated"
        return None


def new_notification(
    request: RequestedNotification,
    tenant: str,
    traceparent: str | None = None,
    *,
    api_key_id: str | None = None,
    test: bool = False,
) -> NewNotification:
    """Build the notification that `request` asks for, with new ids and the current time."""
    created_at = to_millisecond(utc_now())
    notification_id = new_id(created_at)
    content = Content(message=request.message, subject=request.subject)
    user_id, user_key = user_columns(request.user)
    by_email = content if request.email_options is None else content.model_copy(update={"email": request.email_options})
    return NewNotification(
        id=notification_id,
        tenant=tenant,
        created_at=created_at,
        request=request,
        traceparent=traceparent,
        api_key_id=api_key_id,
        test=test,
        deliveries=tuple(
            DeliveryRequested(
                # Queries look for a notification's deliveries only among ids that carry its time.
                delivery_id=new_id(created_at),
                notification_id=notification_id,
                tenant=tenant,
                user_id=user_id,
                user_key=user_key,
                channel=channel,
                recipient=request.recipients.of(channel),
                content=by_email if channel is Channel.EMAIL else content,
                expires_at=request.expires_at,
                test=test,
                traceparent=traceparent,
            )
            for channel in request.requested_channels()
        ),
    )
