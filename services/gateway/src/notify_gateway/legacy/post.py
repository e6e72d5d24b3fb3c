"""How `POST /api/notifications` differs from `POST /v1/notifications`."""

import json

from notify_common.contracts.messages import DeliveryRequested
from notify_common.contracts.trace_context import trace_id
from pydantic import BaseModel

from notify_gateway.http.principal import Principal, Scope
from notify_gateway.legacy.schemas import LegacyDelivery, LegacyNotification, LegacyNotificationRequest
from notify_gateway.notifications.endpoint import PostVersion
from notify_gateway.notifications.new_notification import NewNotification
from notify_gateway.notifications.status import notification_status


def created_json(notification: NewNotification) -> str:
    """Return the JSON of the notification as committed, without reading it back from the database."""
    request = notification.request
    deliveries = [_created_delivery(notification, delivery) for delivery in notification.deliveries]
    return LegacyNotification.model_construct(
        id=notification.id,
        user_id=int(request.user),
        message=request.message,
        type=deliveries[0].channel if len(deliveries) == 1 else None,
        channels=[*request.requested_channels()],
        status=notification_status(delivery.status for delivery in deliveries),
        subject=request.subject,
        email=request.email_options,
        metadata=request.metadata,
        created_at=notification.created_at,
        send_at=request.send_at,
        expires_at=request.expires_at,
        test=notification.test,
        trace_id=trace_id(notification.traceparent),
        deliveries=deliveries,
    ).model_dump_json()


def _created_delivery(notification: NewNotification, delivery: DeliveryRequested) -> LegacyDelivery:
    status, reason = notification.status_of(delivery)
    return LegacyDelivery.model_construct(
        id=delivery.delivery_id,
        channel=delivery.channel,
        recipient=delivery.recipient,
        status=status,
        reason=reason,
        updated_at=notification.created_at,
        attempts=[],
        earlier_attempts=0,
    )


def visible_to(principal: Principal, response: str, request: BaseModel) -> str:
    """Return the response as `principal` may see it: stored recipients may be hidden, but not those of the request.

    The response may be that to an earlier, equal request with the same idempotency key.
    """
    assert isinstance(request, LegacyNotificationRequest)  # noqa: S101 - the only kind of request to this URL
    if Scope.RECIPIENTS_READ in principal.scopes or request.names_all_recipients():
        return response
    created, named = json.loads(response), request.recipient.model_dump()
    for delivery in created["deliveries"]:
        delivery["recipient"] = named.get(delivery["channel"])
    return json.dumps(created, ensure_ascii=False, separators=(",", ":"))


LEGACY = PostVersion("/api/notifications", LegacyNotificationRequest, created_json, visible_to, has_location=False)
