"""Bounded queues for what waits to be flushed: in the order of arrival, or fair between tenants."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from notify_common.errors import Overloaded

QUANTUM_BYTES = 8 * 1024  # what a tenant may take per turn; an entry that is larger takes several turns
ENTRY_BYTES = 1024  # counted for each entry besides its size, because small ones take time, too


class OfTenant(Protocol):
    """Something that takes `size` bytes, which count for its tenant."""

    @property
    def size(self) -> int:
        """The bytes that count towards the bounds."""

    @property
    def tenant(self) -> str:
        """The tenant."""


Entry = TypeVar("Entry", bound=OfTenant)


class WaitingQueue(Protocol[Entry]):
    """A bounded queue."""

    def __len__(self) -> int:
        """Return the number of entries."""

    def has_room(self, tenant: str, size: int) -> bool:
        """Return whether an entry of `size` bytes may be added for the tenant."""

    def add(self, entry: Entry) -> Sequence[Entry]:
        """Add an entry; return the entries that had to leave for it. Raise `Overloaded` if there is no room for it."""

    def take(self, max_entries: int, max_bytes: float) -> list[Entry]:
        """Remove and return the next entries within these bounds; the first one may exceed `max_bytes`."""

    def remove(self, entry: Entry) -> None:
        """Remove an entry; raise `ValueError` if it is not in the queue."""

    def clear(self) -> Sequence[Entry]:
        """Remove and return all entries."""


class FifoQueue(Generic[Entry]):
    """A queue whose entries leave in the order in which they were added."""

    def __init__(self, max_entries: float, max_bytes: float) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: deque[Entry] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def has_room(self, tenant: str, size: int) -> bool:  # noqa: ARG002 - the tenants share all room
        """Return whether an entry of `size` bytes may be added."""
        return len(self._entries) < self._max_entries and self._bytes + size <= self._max_bytes

    def add(self, entry: Entry) -> Sequence[Entry]:
        """Add an entry; raise `Overloaded` if there is no room for it."""
        if len(self._entries) >= self._max_entries or self._bytes + entry.size > self._max_bytes:
            raise Overloaded
        self._entries.append(entry)
        self._bytes += entry.size
        return ()

    def take(self, max_entries: int, max_bytes: float) -> list[Entry]:
        """Remove and return the oldest entries within these bounds; the first one may exceed `max_bytes`."""
        taken: list[Entry] = []
        entries = self._entries
        while entries and len(taken) < max_entries and (not taken or entries[0].size <= max_bytes):
            entry = entries.popleft()
            taken.append(entry)
            self._bytes -= entry.size
            max_bytes -= entry.size
        return taken

    def remove(self, entry: Entry) -> None:
        """Remove an entry; raise `ValueError` if it is not in the queue."""
        self._entries.remove(entry)
        self._bytes -= entry.size

    def clear(self) -> Sequence[Entry]:
        """Remove and return all entries."""
        entries = [*self._entries]
        self._entries.clear()
        self._bytes = 0
        return entries


def can_make_room(needed: float, share: float, held: Iterable[float]) -> bool:
    """Return whether `needed` can be taken from tenants without leaving any of them less than `share`.

    `held` is what each tenant holds.
    """
    return sum(max(0, each - share) for each in held) >= needed


@dataclass(slots=True)
class _Line(Generic[Entry]):
    """The entries of one tenant."""

    entries: deque[Entry] = field(default_factory=deque)
    bytes: int = 0
    credit: int = QUANTUM_BYTES
    """The bytes that are left of the tenant's turn, or of its turns if the next entry is larger than one turn."""


class FairQueue(Generic[Entry]):
    """A queue that tenants share fairly; the entries of each tenant leave in the order in which they were added.

    Tenants take turns of `QUANTUM_BYTES` (deficit round robin), so that a tenant with few or small entries does not
    wait behind all entries of another. A tenant alone may fill the queue. If it is full, the tenant that holds
    most makes room for one that holds less (longest queue drop), so that all tenants can hold an equal part of it.
    """

    def __init__(self, max_entries: float, max_bytes: float) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lines: dict[str, _Line[Entry]] = {}  # tenants without entries have no line; the first one has the turn
        self._count = self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def has_room(self, tenant: str, size: int) -> bool:
        """Return whether an entry of `size` bytes may be added for the tenant."""
        if self._count < self._max_entries and self._bytes + size <= self._max_bytes:
            return True
        # Nobody makes room for a tenant that would then hold more.
        line = self._lines.get(tenant)
        entries, bytes_ = (1, size) if line is None else (len(line.entries) + 1, line.bytes + size)
        lines = self._lines.values()
        return can_make_room(
            self._count + 1 - self._max_entries, entries, (len(each.entries) for each in lines)
        ) and can_make_room(self._bytes + size - self._max_bytes, bytes_, (each.bytes for each in lines))

    def add(self, entry: Entry) -> Sequence[Entry]:
        """Add an entry; return the entries that had to leave for it. Raise `Overloaded` if there is no room for it."""
        if not self.has_room(entry.tenant, entry.size):
            raise Overloaded
        dropped: list[Entry] = []
        while self._count >= self._max_entries:
            dropped.append(self._drop(max(self._lines.values(), key=lambda line: len(line.entries))))
        while self._bytes + entry.size > self._max_bytes:
            dropped.append(self._drop(max(self._lines.values(), key=lambda line: line.bytes)))
        line = self._lines.get(entry.tenant)
        if line is None:
            line = self._lines[entry.tenant] = _Line()
        line.entries.append(entry)
        line.bytes += entry.size
        self._count += 1
        self._bytes += entry.size
        return dropped

    def take(self, max_entries: int, max_bytes: float) -> list[Entry]:
        """Remove and return entries of the tenants in turn; the first one may exceed `max_bytes`."""
        taken: list[Entry] = []
        while self._lines and len(taken) < max_entries:
            tenant, line = next(iter(self._lines.items()))
            entry = line.entries[0]
            if taken and entry.size > max_bytes:
                break
            cost = entry.size + ENTRY_BYTES
            if cost > line.credit:
                line.credit += QUANTUM_BYTES  # for its next turn
                self._lines[tenant] = self._lines.pop(tenant)
                continue
            line.credit -= cost
            max_bytes -= entry.size
            taken.append(line.entries.popleft())
            self._discount(entry, line)
        return taken

    def remove(self, entry: Entry) -> None:
        """Remove an entry; raise `ValueError` if it is not in the queue."""
        line = self._lines.get(entry.tenant)
        if line is None:
            raise ValueError("the entry is not in the queue")
        line.entries.remove(entry)
        self._discount(entry, line)

    def clear(self) -> Sequence[Entry]:
        """Remove and return all entries."""
        entries = [entry for line in self._lines.values() for entry in line.entries]
        self._lines.clear()
        self._count = self._bytes = 0
        return entries

    def _drop(self, line: _Line[Entry]) -> Entry:
        entry = line.entries.pop()
        self._discount(entry, line)
        return entry

    def _discount(self, entry: Entry, line: _Line[Entry]) -> None:
        """Stop counting an entry that has left the queue."""
        line.bytes -= entry.size
        self._count -= 1
        self._bytes -= entry.size
        if not line.entries:
            del self._lines[entry.tenant]
