"""Find the address of the client behind trusted reverse proxies."""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from notify_common.runtime.networks import Address, Network

UNKNOWN = "unknown"
IPV6_PREFIX = 64  # one customer usually has a whole /64 (RFC 6177), so its addresses are counted together
MAX_HOPS = 20  # a request that names more is counted under its last proxies
# RFC 7239, section 4: `name=value` pairs, separated by semicolons, and by a comma after each hop.
PAIR = re.compile(r"[ \t]*([!#$%&'*+.^_`|~\w-]+)=([!#$%&'*+.^_`|~\w-]+|\"(?:[^\"\\]|\\.)*\")[ \t]*([;,]|$)", re.ASCII)
WITH_PORT = re.compile(r"\[([^\]]+)\](?::\w+)?|(\d+\.\d+\.\d+\.\d+):\w+")


class ClientAddresses:
    """Finds the address of each request's client.

    Without `trusted` proxies, this is the address that has opened the connection. If that is a trusted proxy, the
    client is the last address in `Forwarded` (RFC 7239) or `X-Forwarded-For` that is not a trusted proxy. Each proxy
    appends the address that it got the request from, so whatever the client sends comes before that.

    A proxy writes one of the two headers and usually forwards the other unchanged. If they name different clients, or
    cannot be parsed, the address is that of the last known proxy. A client that forges them therefore shares a limit
    with all others that do.
    """

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted

    def group(self, scope: Mapping[str, Any]) -> str:
        """Return the client's IPv4 address, or the network of its IPv6 address, for limits that apply to each."""
        address = self._client(scope)
        if isinstance(address, IPv6Address):
            return str(IPv6Network((address, IPV6_PREFIX), strict=False))
        return UNKNOWN if address is None else str(address)

    def _client(self, scope: Mapping[str, Any]) -> Address | None:
        peer = _parse((scope.get("client") or ("",))[0])
        if peer is None or not self._is_trusted(peer):
            return peer
        headers: dict[bytes, list[str]] = {b"forwarded": [], b"x-forwarded-for": []}
        for name, value in scope["headers"]:
            if name in headers:
                headers[name].append(value.decode("latin-1"))
        forwarded, x_forwarded_for = (",".join(values) for values in headers.values())
        clients = set()
        if forwarded:
            clients.add(self._last_untrusted(peer, _forwarded_hops(forwarded)))
        if x_forwarded_for:
            clients.add(self._last_untrusted(peer, reversed(x_forwarded_for.rsplit(",", MAX_HOPS))))
        return clients.pop() if len(clients) == 1 else peer

    def _last_untrusted(self, peer: Address, hops: Iterator[str]) -> Address:
        """Return the first of `hops`, from the last one backwards, that is not a trusted proxy."""
        nearest = peer
        for hop in hops:
            address = _parse(hop)
            if address is None:
                break
            nearest = address
            if not self._is_trusted(address):
                break
        return nearest

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _forwarded_hops(header: str) -> Iterator[str]:
    """Return the `for` of each hop, the last one first; nothing if the header is malformed."""
    hops, node, position = list[str](), "", 0
    while position < len(header):
        pair = PAIR.match(header, position)
        if pair is None:
            return iter(())
        name, value, separator = pair.groups()
        if name.lower() == "for":
            node = value.strip('"')
        if separator != ";":
            hops.append(node)
            node = ""
        position = pair.end()
    return reversed(hops[-MAX_HOPS:])


def _parse(node: str) -> Address | None:
    """Parse an address with an optional port; an IPv4 address that is mapped into IPv6 becomes an IPv4 address."""
    node = node.strip()
    if with_port := WITH_PORT.fullmatch(node):
        node = with_port[1] or with_port[2]
    try:
        address = ip_address(node)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address
