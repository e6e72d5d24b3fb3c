"""The bound on the events that wait for all subscribers together."""

import tracemalloc

import pytest
from notify_gateway.events import subscriber as event_subscriber
from notify_gateway.events.history import EventFilter
from notify_gateway.events.subscriber import Chunk, Subscriber, UnsentMemory


class Connections:
    """Subscribers that share the memory for unsent events, and those of them that were disconnected."""

    def __init__(self, count: int, *others: str) -> None:
        """Connect `count` subscribers of one tenant, then one of each of the `others`."""
        self.unsent = UnsentMemory()
        self.disconnected: list[int] = []
        tenants = ["ours"] * count + list(others)
        self.subscribers = [self._subscriber(number, tenant) for number, tenant in enumerate(tenants)]

    def _subscriber(self, number: int, tenant: str) -> Subscriber:
        subscriber = Subscriber(EventFilter(tenant), lambda: self.disconnected.append(number), self.unsent)
        self.unsent.subscribers.add(subscriber)
        return subscriber


@pytest.fixture(autouse=True)
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value in {"MAX_UNSENT_BYTES": 1000, "CHUNK_OVERHEAD": 0, "QUEUE_OVERHEAD": 0}.items():
        monkeypatch.setattr(event_subscriber, limit, value)


async def test_subscriber_with_the_most_waiting_bytes_is_dropped_when_all_together_have_too_many() -> None:
    connections = Connections(3)
    for subscriber, size in zip(connections.subscribers, (300, 450, 250), strict=True):
        subscriber.push(Chunk(b"x" * size))
    assert connections.disconnected == []
    connections.subscribers[2].push(Chunk(b"x"))
    assert connections.disconnected == [1]
    assert await connections.subscribers[1].next() is None
    assert await connections.subscribers[2].next() == b"x" * 251
    connections.subscribers[2].written()
    connections.subscribers[0].push(Chunk(b"x" * 700))
    assert connections.disconnected == [1]


async def test_slow_subscribers_of_one_tenant_do_not_stop_the_replay_of_another() -> None:
    connections = Connections(9, "theirs")
    *slow, reconnected = connections.subscribers
    for number, subscriber in enumerate(slow):
        subscriber.push(Chunk(b"x" * (100 + number)))
    reconnected.replay([b"x" * 300])
    assert connections.disconnected == [8, 7, 6]  # the largest subscribers of the tenant with the most waiting bytes
    assert await reconnected.next() == b"x" * 300


async def test_event_that_waits_for_many_subscribers_of_a_tenant_counts_once_for_the_tenant() -> None:
    connections = Connections(50, "theirs")
    *many, other = connections.subscribers
    chunk = Chunk(b"x" * 100)
    for subscriber in many:
        subscriber.push(chunk)
    other.push(Chunk(b"x" * 901))
    assert connections.disconnected == [50]


async def test_event_that_waits_for_many_subscribers_counts_once() -> None:
    connections = Connections(50)
    chunk = Chunk(b"x" * 900)
    for subscriber in connections.subscribers:
        subscriber.push(chunk)
    for subscriber in connections.subscribers[1:]:
        assert await subscriber.next() == chunk.data
        subscriber.written()
    # It is still in memory for the first subscriber.
    connections.subscribers[1].push(Chunk(b"x" * 101))
    assert connections.disconnected == [0]


async def test_replayed_events_count_and_are_written_first() -> None:
    connections = Connections(2)
    reconnected, other = connections.subscribers
    reconnected.push(Chunk(b"live"))
    reconnected.replay([b"missed", b"too"])
    assert [await reconnected.next(), await reconnected.next()] == [b"missedtoo", b"live"]
    reconnected.written()
    reconnected.replay([b"x" * 100] * 10)
    assert connections.disconnected == []
    other.push(Chunk(b"x"))
    assert connections.disconnected == [0]


async def test_bytes_of_a_subscriber_that_leaves_are_free_for_others() -> None:
    connections = Connections(2)
    leaving, staying = connections.subscribers
    leaving.push(Chunk(b"x" * 800))
    leaving.replay([b"x" * 100])
    connections.unsent.subscribers.remove(leaving)
    leaving.discard()
    staying.push(Chunk(b"x" * 1000))
    assert connections.disconnected == []


async def test_event_counts_until_it_has_been_written() -> None:
    connections = Connections(2)
    writing, other = connections.subscribers
    writing.push(Chunk(b"x" * 900))
    assert await writing.next() == b"x" * 900
    other.push(Chunk(b"x" * 101))
    assert connections.disconnected == [0]


async def test_one_write_is_small() -> None:
    connections = Connections(1)
    subscriber = connections.subscribers[0]
    subscriber.replay([b"x" * 10] * 60)
    subscriber.push(Chunk(b"y" * 300))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_subscriber, "BYTES_PER_WRITE", 250)
        writes = [await subscriber.next() for _ in range(4)]
    assert writes == [b"x" * 250, b"x" * 250, b"x" * 100, b"y" * 300]


async def test_slow_subscribers_take_no_more_memory_than_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(event_subscriber, "MAX_UNSENT_BYTES", 2 * 1024 * 1024)
    connections = Connections(500)
    tracemalloc.start()
    try:
        while not connections.disconnected:
            chunk = Chunk(bytes(335))
            for subscriber in connections.subscribers:
                subscriber.push(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * 2 * 1024 * 1024
