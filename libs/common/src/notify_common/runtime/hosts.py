"""Servers that have several addresses: parse the addresses, and choose the one to connect to."""

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Annotated, NamedTuple

from pydantic import AfterValidator
from typing_extensions import override

ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?::(?P<port>[0-9]{1,5}))?"
)
MAX_PORT = 65535


class Address(NamedTuple):
    """The address of one server. An IPv6 address has no brackets."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        """Return the address as it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses(text: str, default_port: int) -> tuple[Address, ...]:
    """Return the different addresses in `text`, in its order; raise `ValueError` if one is invalid."""
    found = [ADDRESS.fullmatch(part.strip()) for part in text.split(",")]
    parsed = [
        Address(match["host"].strip("[]"), int(match["port"] or default_port)) for match in found if match is not None
    ]
    if len(parsed) < len(found) or not all(0 < address.port <= MAX_PORT for address in parsed):
        raise ValueError("must be addresses such as a.example.org:1234, separated by commas")
    return tuple(dict.fromkeys(parsed))


def _checked(text: str) -> str:
    addresses(text, default_port=1)
    return text


AddressList = Annotated[str, AfterValidator(_checked)]
"""A setting that `addresses` can parse."""


class Hosts:
    """The addresses of a server, and the one to try first.

    All connections of a process share these objects, so that a host is tried in vain once and not once per connection.
    """

    def __init__(self, known: Sequence[Address]) -> None:
        self._known = known
        self._first = 0

    @property
    def first(self) -> Address:
        """The address to try first: the initial one, or the one after the last that has failed."""
        return self._known[self._first]

    def in_turn(self) -> Sequence[Address]:
        """Return all addresses in the order in which to try them."""
        return [*self._known[self._first :], *self._known[: self._first]]

    def failed(self, address: Address) -> None:
        """Try the next address first from now on, unless another connection has already found that this one fails."""
        if address == self.first:
            self._first = (self._first + 1) % len(self._known)

    def __len__(self) -> int:
        """Return the number of addresses."""
        return len(self._known)

    @override
    def __str__(self) -> str:
        """Return all addresses, in the order in which to try them."""
        return ", ".join(map(str, self.in_turn()))


@cache
def shared_hosts(known: tuple[Address, ...], *, shuffled: bool) -> Hosts:
    """Return the process's hosts with these addresses; if `shuffled`, in an order that is drawn once per process."""
    return Hosts(random.sample(known, len(known)) if shuffled else known)
