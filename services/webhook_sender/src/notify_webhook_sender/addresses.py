"""Which addresses may be connected to. The URL of a webhook must be no way into our own network."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

import httpcore
from typing_extensions import override

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, 2.4: nothing else of IPv6 is out there
# What the `ipaddress` of an older Python does not know: RFC 7526, RFC 9637.
SPECIAL = (IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))
LOOKUPS = 64  # names at once; each holds a thread until its servers have answered


class HostUnknown(Exception):
    """The name could not be looked up."""


class AddressRefused(Exception):
    """None of the addresses of the host may be connected to."""


def networks(text: str) -> list[Network]:
    """Those that `text` lists, with spaces between; raises `ValueError`."""
    return [ip_network(network) for network in text.split()]


def is_public(address: Address) -> bool:
    """Whether it is out there: not private, link-local, loopback, multicast or reserved (RFC 6890)."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address not in GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in SPECIAL)


def is_in(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether it belongs to one of the networks."""
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((inner or address) in network for network in allowed)


class Resolver:
    """Looks names up, each once for all who want it now: one that is slow must not keep the others waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="resolver")
        self._lookups: dict[str, asyncio.Future[list[Address]]] = {}

    async def addresses(self, host: str) -> list[Address]:
        """Of the host; raises `HostUnknown`."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
            self._lookups[host] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
        try:
            # Whoever gives up leaves it to the others.
            return await asyncio.shield(lookup)
        except OSError as error:
            raise HostUnknown(error.strerror or str(error)) from None

    def close(self) -> None:
        """Wait for nobody's answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str) -> list[Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [ip_address(info[4][0]) for info in found]


class GuardedBackend(httpcore.AnyIOBackend):
    """TCP connections to the addresses that `may_connect` allows.

    What is checked is what is connected to: a name that is looked up twice may have two answers.
    """

    def __init__(self, resolver: Resolver, may_connect: Callable[[Address], bool]) -> None:
        self._resolver = resolver
        self._may_connect = may_connect

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that may be asked and answers, all within `timeout`.

        Raises `HostUnknown` or `AddressRefused`.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                found = await self._resolver.addresses(host)
        except TimeoutError:
            raise HostUnknown("no answer in time") from None
        addresses = [address for address in found if self._may_connect(address)]
        if not addresses:
            raise AddressRefused
        while True:
            address, *others = addresses
            # What is left of the time is for all of them.
            share = None if deadline is None else max(0.0, deadline - loop.time()) / len(addresses)
            try:
                return await super().connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not others:
                    raise
                addresses = others
