"""Hide recipients from keys without the scope `recipients:read`."""

from typing import TypeVar

from notify_gateway.deliveries.schemas import DeliverySummary, NotificationDelivery
from notify_gateway.http.principal import Principal, Scope

Delivery = TypeVar("Delivery", bound=DeliverySummary)


def visible_to(principal: Principal, delivery: Delivery) -> Delivery:
    """Return the delivery as `principal` may see it.

    The provider's error texts are hidden together with the recipient, because many of them quote it.
    """
    if Scope.RECIPIENTS_READ in principal.scopes:
        return delivery
    hidden: dict[str, object] = {"recipient": None}
    if isinstance(delivery, NotificationDelivery) and delivery.attempts is not None:
        hidden["attempts"] = [each.model_copy(update={"error_text": None}) for each in delivery.attempts]
    return delivery.model_copy(update=hidden)
