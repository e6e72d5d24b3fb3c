"""The client's address behind reverse proxies, whose headers a client may have tampered with."""

from ipaddress import ip_network

import pytest
from notify_gateway.http.client_address import ClientAddresses

PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")]
PEER = "10.0.0.1"
CLIENT = "203.0.113.7"


def group(*headers: tuple[str, str], peer: str | None = PEER, trusted: bool = True) -> str:
    scope = {
        "type": "http",
        "client": None if peer is None else (peer, 12345),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }
    return ClientAddresses(PROXIES if trusted else []).group(scope)


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For"])
def test_headers_count_only_if_a_trusted_proxy_sends_them(name: str) -> None:
    header = (name, f"for={CLIENT}" if name == "Forwarded" else CLIENT)
    assert group(header) == CLIENT
    assert group(header, peer="198.51.100.1") == "198.51.100.1"
    assert group(header, trusted=False) == PEER
    assert group() == PEER


@pytest.mark.parametrize(
    "value",
    [
        CLIENT,
        f"1.1.1.1, {CLIENT}",  # the client has sent the first one
        f"10.9.9.9, {CLIENT}",
        f"{CLIENT}, 10.1.1.1, 10.2.2.2",
        f" {CLIENT}:4711 ,10.1.1.1:80",
        f"::ffff:{CLIENT}",
        f"garbage, {CLIENT}",
    ],
)
def test_last_address_that_is_no_trusted_proxy_is_the_client(value: str) -> None:
    assert group(("X-Forwarded-For", value)) == CLIENT
    assert group(*(("X-Forwarded-For", each) for each in value.split(","))) == CLIENT


@pytest.mark.parametrize(
    "value",
    [
        f"for={CLIENT}",
        f'For="{CLIENT}:4711";proto=https;by=10.0.0.1',
        f"for=1.1.1.1, for={CLIENT}",
        f"for={CLIENT};host=example.org, for=10.1.1.1",
        f'for={CLIENT};host="a\\",for=1.1.1.1;b="',  # a comma within quotes
        f'for={CLIENT};host="x, for=1.1.1.1"',
        f"for=unknown, for={CLIENT}",
    ],
)
def test_forwarded_is_read_as_rfc_7239_defines_it(value: str) -> None:
    assert group(("Forwarded", value)) == CLIENT


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("unknown", PEER),
        ("", PEER),
        (",", PEER),
        ("999.1.1.1", PEER),
        (f"{CLIENT}, garbage, 10.1.1.1", "10.1.1.1"),
        ("10.3.3.3, 10.1.1.1", "10.3.3.3"),  # all are trusted
        (", ".join(["1.1.1.1", *["10.1.1.1"] * 2000]), "10.1.1.1"),
    ],
)
def test_malformed_address_falls_back_to_the_nearest_trusted_proxy(value: str, expected: str) -> None:
    assert group(("X-Forwarded-For", value)) == expected


@pytest.mark.parametrize(
    "value", ["for=_hidden", "for=unknown", 'for="', f'for="1.1.1.1, for={CLIENT}', "for", f"for={CLIENT} 1", ";;", "="]
)
def test_forwarded_that_is_malformed_or_hides_the_client_falls_back_to_the_proxy(value: str) -> None:
    assert group(("Forwarded", value)) == PEER


def test_header_that_the_proxy_does_not_write_cannot_change_the_address() -> None:
    """A client cannot choose its address with the header that its proxy passes on unchanged."""
    for spoofed in ("1.1.1.1", "10.7.7.7", "garbage"):
        assert group(("X-Forwarded-For", CLIENT), ("Forwarded", f"for={spoofed}")) == PEER
        assert group(("Forwarded", f"for={CLIENT}"), ("X-Forwarded-For", spoofed)) == PEER
    assert group(("Forwarded", f"for={CLIENT}"), ("X-Forwarded-For", CLIENT)) == CLIENT


def test_ipv6_addresses_are_grouped_by_network() -> None:
    first, second = "2001:db8:9:1::1", "2001:db8:9:1:ffff::2"
    assert group(("X-Forwarded-For", first)) == group(("X-Forwarded-For", f"[{second}]:4711")) == "2001:db8:9:1::/64"
    assert group(("Forwarded", f'for="[{first}]:4711"'), peer="2001:db8:1::1") == "2001:db8:9:1::/64"
    assert group(("X-Forwarded-For", "2001:db8:9:2::1")) == "2001:db8:9:2::/64"


def test_client_without_an_address_has_a_group() -> None:
    assert group(peer=None) == group(peer="a socket") == "unknown"
