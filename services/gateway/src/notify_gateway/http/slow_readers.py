"""Limit the responses that wait in memory because their clients do not read them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from notify_gateway.http.client_address import ClientAddresses

MAX_SLOW_READERS = 200  # connections; each takes up to 230 KiB besides its response
MAX_UNREAD_TOGETHER = 32 * 1024 * 1024  # bytes of all responses that wait
PEERS = ClientAddresses(())  # a proxy counts as one client, because a working proxy reads its responses

Group = tuple[str, str]
"""Connections that count together, by their tenant or address."""

PIPELINING: Group = "pipelining", ""
"""The group of all connections on which further requests wait, whose tenants are unknown: the server does not know to
which of the requests it is responding. Otherwise a tenant could leave its group. Browsers and proxies do not pipeline.
"""


class SlowReader(Protocol):
    """A connection whose client does not read."""

    def give_up(self) -> None:
        """Close the connection without sending what has been written."""


def group_of(scope: Mapping[str, Any]) -> Group:
    """Return the group of a connection that responds to the request of `scope`: its tenant, or else its address."""
    authenticated = scope.get("state", {}).get("authenticated")
    if authenticated is None:
        return "address", PEERS.group(scope)
    principal, _ = authenticated
    return "tenant", principal.tenant


class SlowReaders:
    """The connections that wait until their clients read.

    Beyond a limit, the connections of the largest group that have waited longest are closed.
    """

    def __init__(self) -> None:
        self._waiting: dict[SlowReader, tuple[int, Group]] = {}  # the unread bytes of each; the oldest comes first
        self._bytes = 0

    def add(self, reader: SlowReader, size: int, group: Group) -> None:
        """Count a connection for which `size` bytes wait."""
        self._waiting[reader] = size, group
        self._bytes += size
        while len(self._waiting) > MAX_SLOW_READERS:
            self._shrink(Counter(group for _, group in self._waiting.values()))
        while self._bytes > MAX_UNREAD_TOGETHER:
            sizes = Counter[Group]()
            for waiting, of in self._waiting.values():
                sizes[of] += waiting
            self._shrink(sizes)

    def discard(self, reader: SlowReader) -> None:
        """Stop counting a connection, if it is counted."""
        size, _ = self._waiting.pop(reader, (0, None))
        self._bytes -= size

    def _shrink(self, groups: Counter[Group]) -> None:
        """Close the oldest connection of the largest group."""
        ((largest, _),) = groups.most_common(1)
        oldest = next(reader for reader, (_, group) in self._waiting.items() if group == largest)
        self.discard(oldest)
        oldest.give_up()
