"""The headers that tell the clients of the URLs under `/api` that `/v1` replaces them (RFC 9745, RFC 8288).

There is no `Sunset` header (RFC 8594), because no date is set for their removal.
"""

from collections.abc import Sequence

from notify_gateway.http.problems import LEGACY_PREFIX

SINCE = 1796083200  # 2026-12-01, when the first version with /v1 is released
GUIDE = "/docs/v1-migration"
SUCCESSORS = (
    ("/api/deliveries/retry", "/v1/retries"),
    ("/api/notifications", "/v1/notifications"),
    ("/api/deliveries", "/v1/deliveries"),
    ("/api/users", "/v1/users"),
    ("/api/events", "/v1/events"),
    ("/api/overview", "/v1/overview"),
    ("/api/links", "/v1/links"),
)


def deprecation_headers(path: str) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers for a response to a request with this path, which are empty unless it is deprecated."""
    if not path.startswith(LEGACY_PREFIX):
        return ()
    for old, new in SUCCESSORS:
        if path.startswith(old):
            return HEADERS[new]
    return ()


HEADERS = {
    new: (
        (b"deprecation", b"@%d" % SINCE),
        (b"link", f'<{GUIDE}>; rel="deprecation"; type="text/html", <{new}>; rel="successor-version"'.encode()),
    )
    for _, new in SUCCESSORS
}
