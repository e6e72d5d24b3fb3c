import pytest
from notify_common.contracts.messages import DeliveryStatus as D
from notify_gateway.notifications.status import NotificationStatus as N
from notify_gateway.notifications.status import notification_status


@pytest.mark.parametrize(
    ("deliveries", "status"),
    [
        ([D.PENDING], N.PENDING),
        ([D.SENT, D.RETRYING], N.PENDING),
        ([D.FAILED, D.PENDING], N.PENDING),
        ([D.SENT], N.SENT),
        ([D.SENT, D.SENT], N.SENT),
        ([D.CANCELLED, D.CANCELLED], N.CANCELLED),
        ([D.SENT, D.FAILED], N.PARTIALLY_SENT),
        ([D.SENT, D.CANCELLED], N.PARTIALLY_SENT),
        ([D.FAILED], N.FAILED),
        ([D.EXPIRED], N.FAILED),
        ([D.FAILED, D.CANCELLED], N.FAILED),
    ],
)
def test_notification_status_is_derived_from_its_deliveries(deliveries: list[D], status: N) -> None:
    assert notification_status(deliveries) is status
