"""A subscription's position, repeated events and reconnects, without connections."""

import json
from collections.abc import Iterable

import httpx
import pytest
from notify_client import AuthenticationFailed, Reset, StatusEvent, Unavailable, UnexpectedResponse
from notify_client.config import Config
from notify_client.errors import api_error
from notify_client.resources.events import stream_events
from notify_client.subscription import REMEMBERED, Subscription, is_stream

CONFIG = Config("http://gateway", "ntf_secret", timeout=3.0, max_retries=2)
LIVE = b'retry: 1000\n\nevent: live\ndata: {"live": true}\n\n'


def subscription(last_event_id: str | None = None) -> Subscription:
    return Subscription(stream_events(user_id="7"), CONFIG, last_event_id)


def status(position: int, attempt: int = 1, **change: object) -> bytes:
    data = {
        "delivery_id": "01a21249-0421-71d3-b80c-37f53319348b",
        "notification_id": "01a21249-0421-785f-9e81-0215df9efe6b",
        "user_id": "77\u2028",
        "channel": "telegram",
        "status": "sent",
        "round": 1,
        "attempt": attempt,
        "changed_at": "2026-11-25T10:38:25.028108Z",
        **change,
    }
    return f"id: {position}\nevent: status\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def attempts(events: Iterable[StatusEvent | Reset]) -> list[int]:
    return [event.attempt for event in events if isinstance(event, StatusEvent)]


def test_events_are_read_however_the_stream_is_cut() -> None:
    stream = LIVE + b"id: 1\n\n:\n\n" + status(2) + b"event: new\ndata: x\n\n" + status(3, attempt=2)
    for size in (1, 2, 7, len(stream)):
        reading = subscription()
        assert reading.connected() == []
        events = [
            event for start in range(0, len(stream), size) for event in reading.received(stream[start : start + size])
        ]
        assert attempts(events) == [1, 2]
        assert isinstance(events[0], StatusEvent)
        assert events[0].user_id == "77\u2028"
        assert (reading.live, reading.last_event_id) == (True, "3")


def test_position_follows_the_events_one_by_one() -> None:
    reading = subscription()
    reading.connected()
    events = reading.received(LIVE + b"id: 1\n\n" + status(2) + status(3, attempt=2) + b"id: 4\n\n")
    next(events)
    assert reading.last_event_id == "2"
    next(events)
    assert reading.last_event_id == "3"
    assert list(events) == []
    assert reading.last_event_id == "4"


def test_next_connection_begins_at_the_position() -> None:
    reading = subscription()
    assert "Last-Event-ID" not in reading.http_request().headers
    reading.connected()
    assert attempts(reading.received(LIVE + status(2) + status(3, attempt=2)[:-5])) == [1]  # cut within an event
    request = reading.http_request()
    assert (request.headers["Last-Event-ID"], request.url.query) == ("2", b"user_id=7")
    assert (request.headers["Accept"], request.extensions["timeout"]["read"]) == ("text/event-stream", 45)
    reading.connected()
    # The gateway repeats the events of the last seconds.
    assert attempts(reading.received(LIVE + status(2) + status(3, attempt=2))) == [2]


def test_reset_is_passed_on() -> None:
    reading = subscription("1")
    reading.connected()
    assert list(reading.received(LIVE + b"event: reset\ndata: {}\n\nid: 2\n\n")) == [Reset()]


def test_connection_lost_before_the_first_position_is_a_reset() -> None:
    reading = subscription()
    assert reading.connected() == []
    assert reading.connected() == [Reset()]
    reading = subscription("1")
    reading.connected()
    assert reading.connected() == []


def test_memory_of_events_is_bounded() -> None:
    reading = subscription()
    reading.connected()
    for attempt in range(REMEMBERED + 1):
        list(reading.received(status(attempt, attempt=attempt)))
    assert attempts(reading.received(status(1, attempt=1))) == []
    assert attempts(reading.received(status(0, attempt=0))) == [0]


def test_first_connection_is_given_up_but_later_ones_are_not() -> None:
    reading, lost = subscription(), httpx.ReadError("reset")
    for _ in range(CONFIG.max_retries):
        reading.wait_after(api_error(503, b"", 1.0))
    with pytest.raises(Unavailable):
        reading.wait_after(api_error(503, b"", 1.0))
    reading.connected()
    reading.wait_after(None)
    for _ in range(100):
        assert reading.wait_after(lost) <= 8
    assert reading.wait_after(api_error(503, b"", 3.0)) >= 3
    with pytest.raises(AuthenticationFailed):
        reading.wait_after(api_error(401, b"", None))


def test_other_responses_are_errors() -> None:
    page = httpx.Response(200, content=b"<html>", headers={"Content-Type": "text/html"})
    assert not is_stream(page)
    assert type(subscription().not_a_stream(page)) is UnexpectedResponse
    refused = httpx.Response(503, headers={"Content-Type": "text/event-stream"})
    assert not is_stream(refused)
    assert type(subscription().not_a_stream(refused)) is Unavailable
    reading = subscription()
    with pytest.raises(UnexpectedResponse, match="round"):
        list(reading.received(status(1, round="x")))
