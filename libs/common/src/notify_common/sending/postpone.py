"""Decide when a request whose call was not admitted is handled again. The decision is a pure function."""

from datetime import datetime, timedelta

from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.attempt import Postponed
from notify_common.sending.call import NotAdmitted


def postpone(request: DeliveryRequested, refusal: NotAdmitted, now: datetime) -> Postponed:
    """Return the request that is handled after the refusal's wait, or when the delivery expires.

    Until then it waits in a retry queue, because RabbitMQ closes the channel of a consumer that holds a message for too
    long (`consumer_timeout`).
    """
    wait = timedelta(seconds=refusal.wait)
    since = request.waiting_since
    if refusal.circuit_open:
        since = since or now
    elif since is not None:
        # Only outages count towards `max_wait`, so a wait for a turn or for a busy provider does not.
        since += wait
    not_before, reserved = now + wait, refusal.reserved
    if request.expires_at is not None and not_before >= request.expires_at:
        # A request with a turn returns a few seconds early. If it were then postponed to its expiry a second time, it
        # could not be told from a redelivered message, and would be dropped.
        not_before, reserved = request.expires_at, False
    changes = {"not_before": not_before, "waiting_since": since, "reserved": reserved}
    return Postponed(request.model_copy(update=changes))
