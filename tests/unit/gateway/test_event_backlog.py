"""The bound on the events that wait for all subscribers together."""

import pytest
from notify_gateway.events import subscriber as event_subscriber
from notify_gateway.events.history import EventFilter
from notify_gateway.events.subscriber import Backlog, Chunk, Subscriber


class Connections:
    """Subscribers that share a backlog, and those of them that were disconnected."""

    def __init__(self, count: int) -> None:
        self.backlog = Backlog()
        self.disconnected: list[int] = []
        self.subscribers = [self._subscriber(number) for number in range(count)]

    def _subscriber(self, number: int) -> Subscriber:
        subscriber = Subscriber(EventFilter("ours"), lambda: self.disconnected.append(number), self.backlog)
        self.backlog.subscribers.add(subscriber)
        return subscriber


@pytest.fixture(autouse=True)
def small_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_subscriber, "MAX_BACKLOG_BYTES", 1000)


async def test_subscriber_with_the_most_waiting_bytes_is_dropped_when_all_together_have_too_many() -> None:
    connections = Connections(3)
    for subscriber, size in zip(connections.subscribers, (300, 450, 250), strict=True):
        subscriber.push(Chunk(b"x" * size))
    assert connections.disconnected == []
    connections.subscribers[2].push(Chunk(b"x"))
    assert connections.disconnected == [1]
    assert await connections.subscribers[1].next() is None
    assert await connections.subscribers[2].next() == b"x" * 251
    connections.subscribers[0].push(Chunk(b"x" * 700))
    assert connections.disconnected == [1]


async def test_event_that_waits_for_many_subscribers_counts_once() -> None:
    connections = Connections(50)
    chunk = Chunk(b"x" * 900)
    for subscriber in connections.subscribers:
        subscriber.push(chunk)
    for subscriber in connections.subscribers[1:]:
        assert await subscriber.next() == chunk.data
    # It is still in memory for the first subscriber.
    connections.subscribers[1].push(Chunk(b"x" * 101))
    assert connections.disconnected == [0]


async def test_replayed_events_count_and_are_written_first() -> None:
    connections = Connections(2)
    reconnected, other = connections.subscribers
    reconnected.push(Chunk(b"live"))
    reconnected.replay([b"missed", b"too"])
    assert [await reconnected.next(), await reconnected.next()] == [b"missedtoo", b"live"]
    reconnected.replay([b"x" * 100] * 10)
    assert connections.disconnected == []
    other.push(Chunk(b"x"))
    assert connections.disconnected == [0]


async def test_bytes_of_a_subscriber_that_leaves_are_free_for_others() -> None:
    connections = Connections(2)
    leaving, staying = connections.subscribers
    leaving.push(Chunk(b"x" * 800))
    leaving.replay([b"x" * 100])
    connections.backlog.subscribers.remove(leaving)
    leaving.discard()
    staying.push(Chunk(b"x" * 1000))
    assert connections.disconnected == []
