"""Networks and loopback hosts in settings and requests."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network


def networks(text: str) -> list[Network]:
    """Parse a space-separated list of networks; raise `ValueError` if one is invalid."""
    try:
        return [ip_network(network) for network in text.split()]
    except ValueError:
        raise ValueError("must be networks such as 10.1.0.0/16, separated by spaces") from None


def _checked(text: str) -> str:
    networks(text)
    return text


NetworkList = Annotated[str, AfterValidator(_checked)]
"""A setting that `networks` can parse."""


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine: `localhost` or a loopback address. IPv6 addresses may be in brackets."""
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(host: str) -> bool:
    """Return whether `host` is this machine, or a name without a domain, such as that of a container."""
    return is_loopback(host) or not {".", ":"} & set(host)
