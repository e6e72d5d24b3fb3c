"""The choice of the connections that give up when too many clients do not read."""

from typing import Any

import pytest
from notify_gateway.http import slow_readers
from notify_gateway.http.principal import Principal
from notify_gateway.http.slow_readers import SlowReaders, group_of


class Readers:
    """Connections whose clients do not read, and those of them that gave up."""

    def __init__(self) -> None:
        self.given_up: list[str] = []
        self._slow_readers = SlowReaders()

    def add(self, name: str, size: int, group: str) -> None:
        self._slow_readers.add(Reader(name, self.given_up), size, ("tenant", group))


class Reader:
    def __init__(self, name: str, given_up: list[str]) -> None:
        self._name = name
        self._given_up = given_up

    def give_up(self) -> None:
        self._given_up.append(self._name)


def scope(address: str, tenant: str | None = None) -> dict[str, Any]:
    state: dict[str, Any] = {}
    if tenant is not None:
        state["authenticated"] = Principal("some key", tenant, frozenset()), {}
    return {"client": (address, 1234), "state": state}


def test_oldest_of_the_group_with_the_most_bytes_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_readers, "MAX_UNREAD_TOGETHER", 1000)
    readers = Readers()
    readers.add("download", 300, "ours")
    for number in range(5):
        readers.add(f"page {number}", 200, "theirs")
    assert readers.given_up == ["page 0", "page 1"]
    readers.add("other download", 301, "ours")
    assert readers.given_up == ["page 0", "page 1", "download"]


def test_oldest_of_the_group_with_the_most_connections_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small responses must not cut off the large one of another group."""
    monkeypatch.setattr(slow_readers, "MAX_SLOW_READERS", 4)
    readers = Readers()
    readers.add("download", 1000, "ours")
    for number in range(5):
        readers.add(f"stream {number}", 1, "theirs")
    assert readers.given_up == ["stream 0", "stream 1"]


def test_group_is_the_tenant_or_else_the_address() -> None:
    assert group_of(scope("192.0.2.1", "ours")) == group_of(scope("192.0.2.2", "ours"))
    assert group_of(scope("192.0.2.1", "ours")) != group_of(scope("192.0.2.1", "theirs"))
    assert group_of(scope("192.0.2.1")) != group_of(scope("192.0.2.2"))
    assert group_of(scope("192.0.2.1")) != group_of(scope("192.0.2.1", "192.0.2.1"))
    assert group_of(scope("2001:db8::1")) == group_of(scope("2001:db8::2"))
    assert group_of({}) != group_of(scope("192.0.2.1"))
