"""Limit the addresses that webhooks may connect to, because their URLs must not give access to our own network."""

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Protocol

import httpcore
from notify_common.runtime.networks import Address, Network
from typing_extensions import override

from notify_webhook_sender.bounded_stream import BoundedStream

NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, 2.4: all public IPv6 addresses are in this range
# The `ipaddress` module takes addresses in these networks for public. RFC 6890 makes exceptions within the first. Only
# newer Python versions know the next two (RFC 7526, RFC 9637). Every machine in Azure reaches its host at the last.
RESERVED = (
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv6Network("3fff::/20"),
    IPv4Network("168.63.129.16/32"),
)
# At these addresses, clouds give a machine its settings and credentials.
METADATA: frozenset[Address] = frozenset(
    ip_address(address)
    for address in (
        "169.254.169.254",  # AWS, Azure, Google Cloud, OpenStack and others
        "169.254.170.2",  # AWS: credentials of containers
        "169.254.170.23",  # AWS: credentials of pods
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS: credentials of pods
        "168.63.129.16",  # Azure
        "fd20:ce::254",  # Google Cloud
        "100.100.100.200",  # Alibaba Cloud
        "192.0.0.192",  # Oracle Cloud
    )
)


class HostUnknown(Exception):
    """The host name could not be resolved."""


class AddressRefused(Exception):
    """Webhooks may not connect to any of the host's addresses."""


def is_public(address: Address) -> bool:
    """Return True unless the address is private, link-local, loopback, multicast or reserved (RFC 6890)."""
    if (inner := _embedded(address)) is not None:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in RESERVED)


def is_in(address: Address, allowed: Iterable[Network]) -> bool:
    """Return True if the address belongs to one of the allowed networks.

    An address at which a cloud serves metadata must be listed on its own, as a network may include it by accident.
    """
    if address in METADATA or _embedded(address) in METADATA:
        allowed = [network for network in allowed if network.num_addresses == 1]
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((inner or address) in network for network in allowed)


def _embedded(address: Address) -> IPv4Address | None:
    """Return the IPv4 address to which packets for an IPv6 address are translated or tunnelled, if there is one."""
    if not isinstance(address, IPv6Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


class AddressLookup(Protocol):
    """A way to resolve host names."""

    async def addresses(self, host: str) -> list[Address]:
        """Return the addresses of the host, or raise `HostUnknown`."""


class GuardedBackend(httpcore.AnyIOBackend):
    """A network backend that opens TCP connections only to addresses that `may_connect` allows, and bounds responses.

    It connects to exactly the addresses that it has checked, because a second lookup of the name could return others.
    """

    def __init__(self, resolver: AddressLookup, may_connect: Callable[[Address], bool]) -> None:
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
        """Connect to the first allowed address that responds, or raise `HostUnknown` or `AddressRefused`.

        The `timeout` covers the lookup and all connection attempts.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                found = await self._resolver.addresses(host)
        except TimeoutError:
            raise HostUnknown("the lookup timed out") from None
        addresses = [address for address in found if self._may_connect(address)]
        if not addresses:
            raise AddressRefused
        while True:
            address, *others = addresses
            # The remaining addresses share the remaining time equally.
            share = None if deadline is None else max(0.0, deadline - loop.time()) / len(addresses)
            try:
                stream = await super().connect_tcp(str(address), port, share, local_address, socket_options)
                return BoundedStream(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not others:
                    raise
                addresses = others
