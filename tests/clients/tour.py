"""Use a client that openapi-python-client has generated; the argument is the URL of the gateway."""

import sys
import time
from datetime import UTC, datetime, timedelta

from notify import Client
from notify.api.deliveries import list_deliveries
from notify.api.notifications import cancel_notification, create_notification, get_notification, list_notifications
from notify.api.users import put_user_channel
from notify.models import (
    Channel,
    CreatedNotification,
    DeliveryPage,
    DeliveryStatus,
    Notification,
    NotificationPage,
    NotificationRequest,
    NotificationStatus,
    ProblemCode,
    ProblemDetails,
    Recipients,
    UserChannelSettings,
)

USER = "3fa85f64-5717-4562-b3fc-2c963f66afa6"

client = Client(base_url=sys.argv[1])
put_user_channel.sync(USER, Channel.EMAIL, client=client, body=UserChannelSettings(recipient="a@example.org"))
body = NotificationRequest(
    user_id=USER,
    channels=[Channel.TELEGRAM, Channel.EMAIL],
    message="Your order has left our warehouse.",
    to=Recipients(telegram="123456789"),
    reference="order-5512",
)
created = create_notification.sync(client=client, body=body, idempotency_key="order-5512")
assert isinstance(created, CreatedNotification)
repeated = create_notification.sync(client=client, body=body, idempotency_key="order-5512")
assert isinstance(repeated, CreatedNotification)
assert repeated.id == created.id

while True:
    notification = get_notification.sync(created.id, client=client)
    assert isinstance(notification, Notification)
    if notification.status is not NotificationStatus.PENDING:
        break
    time.sleep(0.05)
assert notification.status is NotificationStatus.SENT
assert [delivery.recipient for delivery in notification.deliveries] == ["a@example.org", "123456789"]
assert all(delivery.attempts for delivery in notification.deliveries)

page = list_notifications.sync(client=client, reference="order-5512")
assert isinstance(page, NotificationPage)
assert ([each.id for each in page.items], page.has_more) == ([created.id], False)
deliveries = list_deliveries.sync(client=client, status=[DeliveryStatus.SENT], user_id=USER, limit=1)
assert isinstance(deliveries, DeliveryPage)
assert deliveries.has_more

later = NotificationRequest(
    user_id=USER, channels=[Channel.EMAIL], message="x", send_at=datetime.now(UTC) + timedelta(hours=1)
)
scheduled = create_notification.sync(client=client, body=later)
assert isinstance(scheduled, CreatedNotification)
cancelled = cancel_notification.sync(scheduled.id, client=client)
assert isinstance(cancelled, Notification)
assert cancelled.status is NotificationStatus.CANCELLED

body.message = ""
problem = create_notification.sync(client=client, body=body)
assert isinstance(problem, ProblemDetails)
assert problem.code is ProblemCode.INVALID_REQUEST
assert isinstance(problem.errors, list)
assert problem.errors[0].field == "message"
