"""The heads of requests: how much memory they take, and how the parser deviates from HTTP when it reads them."""

from collections.abc import Sequence

import httptools

Headers = Sequence[tuple[bytes, bytes]]

REQUEST_SIZE = 3072  # bytes of our own objects for a request that waits in a pipeline
HEADER_SIZE = 128  # the same for each of its headers


def memory_of(url: bytes, headers: Headers) -> int:
    """Return the bytes that a request takes while it waits in a pipeline."""
    return REQUEST_SIZE + len(url) + sum(len(name) + len(value) + HEADER_SIZE for name, value in headers)


def without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """Return the head of a request without `Upgrade`, which a server may ignore (RFC 9110, section 7.8)."""
    fields = [b"%b: %b\r\n" % (name, value) for name, value in headers if name != b"upgrade"]
    return b"".join([b"%b %b HTTP/%b\r\n" % (method, target, version.encode()), *fields, b"\r\n"])


def with_host_of_target(target: bytes, version: str, headers: Headers) -> Headers:
    """Replace the host by that of an absolute request target, as RFC 9112, section 3.2.2, demands."""
    url = httptools.parse_url(target)
    if url.host is None:
        return headers
    host = b"[%b]" % url.host if b":" in url.host else url.host
    authority = host if url.port is None else b"%b:%d" % (host, url.port)
    named = [(name, authority if name == b"host" else value) for name, value in headers]
    if version == "1.0" and not any(name == b"host" for name, _ in named):
        named.append((b"host", authority))
    return named
