"""Check that a request names a host that the gateway serves, and that no page of another site has caused it.

This protects the users of browsers that can reach a gateway. A page whose name is resolved to the gateway's address
(DNS rebinding) is of the same origin for the browser, so only `Host` tells it apart. A page of another site cannot read
our responses, but it can make a browser send requests.
"""

import re
from collections.abc import Collection
from functools import lru_cache

from notify_common.runtime.networks import is_loopback

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, section 9.2.1
OWN_SITE = frozenset({b"same-origin", b"none"})  # `none`: the user, and not a page, caused the request
DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
CACHED_HOSTS = 64
# RFC 3986, section 3.2; a name may be empty. The IPv6 addresses are checked less strictly than there.
AUTHORITY = re.compile(rb"(\[[0-9a-z:.]+\]|[0-9a-z\-._~!$&'()*+,;=%]*)(?::[0-9]*)?", re.IGNORECASE)

Refusal = tuple[int, str]
"""The status and the detail of an error response."""

NOT_ONE_HOST = 400, "A request needs exactly one Host header."
INVALID_HOST = 400, "Host: must be a host name or an IP address, with an optional port."
FOREIGN_HOST = 421, "Host: this gateway does not serve this host; ALLOWED_HOSTS can name it."
FOREIGN_ORIGIN = 403, "Pages of other sites must not cause changes (Origin or Sec-Fetch-Site)."


class OriginCheck:
    """A check of `Host`, `Origin` and `Sec-Fetch-Site`.

    Only loopback hosts and `allowed_hosts` are served, unless `any_host` is set.
    """

    def __init__(self, allowed_hosts: Collection[str] = (), *, any_host: bool = False) -> None:
        self._allowed_hosts = allowed_hosts
        self._any_host = any_host
        self._check_host = lru_cache(CACHED_HOSTS)(self._check_new_host)

    def refusal(
        self, method: str, version: str, hosts: int, host: bytes, origin: bytes | None, site: bytes | None
    ) -> Refusal | None:
        """Return the error for a request with these headers, or None. `hosts` is the number of its `Host` headers."""
        # RFC 9112, section 3.2. Browsers always send the header; some health checks still use HTTP/1.0 without it.
        if hosts != 1 and (hosts or version != "1.0"):
            return NOT_ONE_HOST
        if hosts and (refusal := self._check_host(host)) is not None:
            return refusal
        return None if method in SAFE_METHODS or _own_site(host, origin, site) else FOREIGN_ORIGIN

    def _check_new_host(self, host: bytes) -> Refusal | None:
        match = AUTHORITY.fullmatch(host.strip(b" \t"))
        if match is None:
            return INVALID_HOST
        name = match[1].decode("ascii").lower()
        return None if self._any_host or name in self._allowed_hosts or is_loopback(name) else FOREIGN_HOST


def _own_site(host: bytes, origin: bytes | None, site: bytes | None) -> bool:
    """Return whether a page of ours, or no page at all, caused the request.

    `Sec-Fetch-Site` decides if it is there, because pages cannot set it, and it is right even if a reverse proxy has
    replaced `Host`. Browsers send it over TLS and to loopback hosts only, and other clients send neither header.
    """
    if site is not None:
        return site in OWN_SITE
    if origin is None:
        return True
    # The scheme is not compared, because TLS ends at a reverse proxy. Browsers omit the default port of the scheme.
    scheme, _, authority = origin.lower().partition(b"://")
    own = host.strip(b" \t").lower()
    return bool(authority) and own in (authority, authority + DEFAULT_PORTS.get(scheme, b""))
