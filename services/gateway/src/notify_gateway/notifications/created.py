"""The response to `POST /v1/notifications`."""

from notify_gateway.notifications.new_notification import NewNotification
from notify_gateway.notifications.schemas import CreatedDelivery, CreatedNotification
from notify_gateway.notifications.status import notification_status


def created_json(notification: NewNotification) -> str:
    """Return the JSON of the notification as committed, without reading it back from the database."""
    deliveries = [
        CreatedDelivery.model_construct(
            id=delivery.delivery_id, channel=delivery.channel, status=notification.status_of(delivery)[0]
        )
        for delivery in notification.deliveries
    ]
    return CreatedNotification.model_construct(
        id=notification.id,
        status=notification_status(delivery.status for delivery in deliveries),
        created_at=notification.created_at,
        deliveries=deliveries,
    ).model_dump_json()
