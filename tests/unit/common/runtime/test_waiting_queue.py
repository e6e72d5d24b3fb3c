"""The order in which tenants' requests leave a queue, and how much room each tenant may take."""

import math
from collections import Counter
from dataclasses import dataclass

import pytest
from notify_common.errors import Overloaded
from notify_common.runtime.waiting_queue import ENTRY_BYTES, QUANTUM_BYTES, FairQueue, FifoQueue, can_make_room


@dataclass(frozen=True, eq=False)
class Request:
    tenant: str
    size: int = 0


def queue_of(max_entries: float = math.inf, max_bytes: float = math.inf) -> FairQueue[Request]:
    return FairQueue(max_entries, max_bytes)


def fill(queue: FairQueue[Request], tenant: str, size: int = 0) -> int:
    """Add entries until the tenant is refused; return their number."""
    added = 0
    while True:
        try:
            queue.add(Request(tenant, size))
        except Overloaded:
            return added
        added += 1


@pytest.mark.parametrize(
    ("own", "held", "expected"),
    [
        (0, [0, 100], True),
        (40, [40, 60], True),
        (45, [45, 55], False),  # both would have 55 or less
        (50, [50, 50], False),
        (0, [0, 10, 10, 80], True),
        (0, [0, *[10] * 10], False),  # everybody has an equal share
        (0, [0, *[14] * 7], True),  # several make room together
        (100, [100], False),
    ],
)
def test_only_tenants_that_hold_more_make_room(own: int, held: list[int], expected: bool) -> None:
    assert can_make_room(10, own + 10, held) is expected


def test_tenant_alone_may_fill_the_queue_and_others_get_equal_shares_of_it() -> None:
    queue = queue_of(max_entries=5_000)
    assert fill(queue, "a") == 5_000
    for tenant in "bcde":
        fill(queue, tenant)
    assert len(queue) == 5_000
    held = Counter(entry.tenant for entry in queue.clear())
    assert max(held.values()) - min(held.values()) <= 4, held


def test_newest_entries_of_the_tenant_that_holds_most_bytes_make_room() -> None:
    queue = queue_of(max_bytes=1_000)
    large = [Request("a", 300) for _ in range(3)]
    many = [Request("b", 10) for _ in range(10)]
    for entry in (*large, *many):
        assert not queue.add(entry)
    with pytest.raises(Overloaded):
        queue.add(Request("a", 10))
    assert queue.add(Request("c", 301)) == large[:0:-1]
    assert queue.clear() != []


def test_entry_that_would_get_more_than_its_share_makes_nobody_leave() -> None:
    queue = queue_of(max_entries=10, max_bytes=1_000)
    for tenant in "abcdefghi":
        queue.add(Request(tenant, 100))
    assert not queue.has_room("j", 200)
    with pytest.raises(Overloaded):
        queue.add(Request("j", 200))
    assert not queue.add(Request("j", 100))
    assert len(queue) == 10


def test_room_is_free_again_after_entries_were_taken_or_removed() -> None:
    queue = queue_of(max_entries=10, max_bytes=1_000)
    first = Request("a", 100)
    queue.add(first)
    assert fill(queue, "a", 100) == 9
    queue.remove(first)
    assert fill(queue, "a", 100) == 1
    assert len(queue.take(3, math.inf)) == 3
    assert fill(queue, "a", 100) == 3
    assert len(queue.clear()) == 10
    assert len(queue) == 0
    assert fill(queue, "a", 100) == 10


def test_entries_of_one_tenant_leave_in_their_order() -> None:
    queue = queue_of()
    entries = [Request("a", number % 5 * 50_000) for number in range(300)]
    for entry in entries:
        queue.add(entry)
    assert [*queue.take(100, math.inf), *queue.take(1_000, math.inf)] == entries
    assert queue.take(1, math.inf) == []


def test_late_tenant_shares_the_next_batch_with_a_tenant_that_has_many_waiting() -> None:
    queue = queue_of()
    for _ in range(4_000):
        queue.add(Request("many"))
    for _ in range(100):
        queue.add(Request("late"))
    assert Counter(entry.tenant for entry in queue.take(500, math.inf))["late"] == 100


def test_tenants_get_equal_bytes_whatever_the_size_of_their_entries() -> None:
    queue = queue_of()
    for _ in range(2_000):
        queue.add(Request("small", 1_000))
    for _ in range(100):
        queue.add(Request("large", 250_000))
    taken = Counter[str]()
    for _ in range(3):
        for entry in queue.take(500, 2 * 1024 * 1024):
            taken[entry.tenant] += entry.size + ENTRY_BYTES
    assert abs(taken["small"] - taken["large"]) <= 250_000 + ENTRY_BYTES + QUANTUM_BYTES


def test_batch_is_bounded_in_bytes_but_not_empty() -> None:
    queue = queue_of()
    for tenant, size in (("a", 60), ("b", 60), ("a", 500)):
        queue.add(Request(tenant, size))
    batches = [[entry.size for entry in queue.take(10, 100)] for _ in range(4)]
    assert sorted(batches) == [[], [60], [60], [500]]


def test_removing_an_entry_that_was_taken_fails() -> None:
    for queue in (queue_of(), FifoQueue[Request](math.inf, math.inf)):
        entry = Request("a")
        queue.add(entry)
        queue.take(1, math.inf)
        with pytest.raises(ValueError, match="not in"):
            queue.remove(entry)
