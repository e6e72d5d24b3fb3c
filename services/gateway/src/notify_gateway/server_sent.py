"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): how they look on the wire."""

from datetime import datetime, timedelta

from notify_database.id_ranges import EPOCH

from notify_gateway.schemas import StatusEvent

MEDIA_TYPE = "text/event-stream"
MICROSECOND = timedelta(microseconds=1)
RETRY = b"retry: 1000\n\n"  # milliseconds until a client comes back
HEARTBEAT = b":\n\n"
RESET = b"event: reset\ndata: {}\n\n"


def status_chunk(event: StatusEvent) -> bytes:
    """A change of status; its id is the time by which a client that was away asks for what it has missed."""
    position = (event.changed_at - EPOCH) // MICROSECOND
    return f"id: {position}\nevent: status\ndata: {event.model_dump_json()}\n\n".encode()


def live_chunk(*, live: bool) -> bytes:
    """Whether changes are told as they happen, or RabbitMQ is away."""
    return b'event: live\ndata: {"live": %s}\n\n' % (b"true" if live else b"false")


def position(event_id: str) -> datetime:
    """The time that the id of an event tells."""
    return EPOCH + int(event_id) * MICROSECOND
