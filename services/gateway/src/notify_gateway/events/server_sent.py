"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): how they look on the wire."""

from collections import deque
from datetime import datetime, timedelta

from notify_common.contracts.ids import EPOCH

from notify_gateway.events.schemas import StatusEvent

MEDIA_TYPE = "text/event-stream"
MICROSECOND = timedelta(microseconds=1)
RETRY = b"retry: 1000\n\n"  # milliseconds until a client comes back
HEARTBEAT = b":\n\n"
RESET = b"event: reset\ndata: {}\n\n"
CHUNKS_PER_WRITE = 100


def status_chunk(event: StatusEvent) -> bytes:
    """A change of status; its id is the time by which a client that was away asks for what it has missed."""
    return b"%bevent: status\ndata: %b\n\n" % (_id(event.changed_at), event.model_dump_json().encode())


def position_chunk(time: datetime) -> bytes:
    """No event: what a client says when it comes back, if it has read nothing since."""
    return _id(time) + b"\n"


def live_chunk(*, live: bool) -> bytes:
    """Whether changes are told as they happen, or RabbitMQ is away."""
    return b'event: live\ndata: {"live": %s}\n\n' % (b"true" if live else b"false")


def take_for_a_write(chunks: deque[bytes]) -> bytes:
    """The first of the chunks, as many as are written at once; the rest stays."""
    return b"".join(chunks.popleft() for _ in range(min(len(chunks), CHUNKS_PER_WRITE)))


def _id(time: datetime) -> bytes:
    return b"id: %d\n" % ((time - EPOCH) // MICROSECOND)


def position(event_id: str) -> datetime:
    """The time that the id of an event tells."""
    return EPOCH + int(event_id) * MICROSECOND
