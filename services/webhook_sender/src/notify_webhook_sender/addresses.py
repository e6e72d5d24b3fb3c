"""Which addresses may be connected to. The URL of a webhook must be no way into our own network."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

import httpcore
from typing_extensions import override

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class HostUnknown(Exception):
    """The name could not be looked up."""


class AddressRefused(Exception):
    """None of the addresses of the host may be connected to."""


def networks(text: str) -> list[Network]:
    """Those that `text` lists, with spaces between."""
    return [ip_network(network) for network in text.split()]


def is_public(address: Address) -> bool:
    """Whether it is out there: not private, link-local, loopback, multicast or reserved (RFC 6890)."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def is_in(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether it belongs to one of the networks."""
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((inner or address) in network for network in allowed)


class GuardedBackend(httpcore.AnyIOBackend):
    """TCP connections to the addresses that `may_connect` allows.

    What is checked is what is connected to: a name that is looked up twice may have two answers.
    """

    def __init__(self, may_connect: Callable[[Address], bool]) -> None:
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
        """Connect to the first address of `host` that may be asked and answers; raises `HostUnknown`, `AddressRefused`."""
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (TimeoutError, socket.gaierror) as error:
            raise HostUnknown(str(error)) from None
        except UnicodeError:
            raise AddressRefused from None  # no host can have such a name
        addresses = [address for info in found if self._may_connect(address := ip_address(info[4][0]))]
        if not addresses:
            raise AddressRefused
        for address in addresses[:-1]:
            try:
                return await super().connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await super().connect_tcp(str(addresses[-1]), port, timeout, local_address, socket_options)
