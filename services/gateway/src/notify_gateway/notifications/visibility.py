"""Hide recipients from keys without the scope `recipients:read`."""

from notify_gateway.deliveries.visibility import visible_to
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.notifications.schemas import Notification


def notification_visible_to(principal: Principal, notification: Notification) -> Notification:
    """Return the notification as `principal` may see it."""
    if Scope.RECIPIENTS_READ in principal.scopes:
        return notification
    deliveries = [visible_to(principal, delivery) for delivery in notification.deliveries]
    return notification.model_copy(update={"deliveries": deliveries})
