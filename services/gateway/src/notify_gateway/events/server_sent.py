"""Server-sent events on the wire (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from datetime import datetime, timedelta

from notify_common.contracts.ids import EPOCH

from notify_gateway.events.schemas import IntegerStatusEvent, StatusEvent

MEDIA_TYPE = "text/event-stream"
MICROSECOND = timedelta(microseconds=1)
RETRY = b"retry: 1000\n\n"  # milliseconds until a client reconnects
HEARTBEAT = b":\n\n"
RESET = b"event: reset\ndata: {}\n\n"


def status_chunk(event: StatusEvent, *, integer_users: bool = False) -> bytes:
    """Return a `status` event; its id is the time of the change, from which a client can replay after reconnecting."""
    if integer_users:
        data = IntegerStatusEvent.model_construct(**{**vars(event), "user_id": int(event.user_id)}).model_dump_json()
    else:
        data = event.model_dump_json(exclude_none=True)
    return b"%bevent: status\ndata: %b\n\n" % (_id(event.changed_at), data.encode())


def position_chunk(time: datetime) -> bytes:
    """Return an id without an event, so that a client can replay even if it disconnects before any event."""
    return _id(time) + b"\n"


def live_chunk(*, live: bool) -> bytes:
    """Return a `live` event: false means that RabbitMQ is unavailable, so changes arrive late."""
    return b'event: live\ndata: {"live": %s}\n\n' % (b"true" if live else b"false")


def _id(time: datetime) -> bytes:
    return b"id: %d\n" % ((time - EPOCH) // MICROSECOND)


def position(event_id: str) -> datetime:
    """Return the time that an event id encodes."""
    return EPOCH + int(event_id) * MICROSECOND
