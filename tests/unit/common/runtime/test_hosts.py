import pytest
from notify_common.runtime.hosts import Address, Hosts, addresses, shared_hosts

A, B, C = (Address(name, 5672) for name in "abc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:5672", [A]),
        ("a:5672,b:5672,c:5672", [A, B, C]),
        (" a:1 , b ", [Address("a", 1), B]),
        ("a,a:5672", [A]),
        ("10.0.0.1:1,[::1]:2,[fe80::2]", [Address("10.0.0.1", 1), Address("::1", 2), Address("fe80::2", 5672)]),
        ("rabbit-1.example.org:5671", [Address("rabbit-1.example.org", 5671)]),
    ],
)
def test_addresses_are_parsed(text: str, expected: list[Address]) -> None:
    assert list(addresses(text, default_port=5672)) == expected


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", "a:", "a:0", "a:65536", "a b", "a;b", "::1:5672", "user@a:1", "amqp://a:1", "a:1/vhost", "-a"],
)
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be addresses such as a\.example\.org:1234, separated by commas"):
        addresses(text, default_port=5672)


def test_ipv6_addresses_are_written_in_brackets() -> None:
    assert (str(Address("::1", 1)), str(A)) == ("[::1]:1", "a:5672")


def test_hosts_are_tried_in_turn_beginning_after_the_one_that_failed() -> None:
    hosts = Hosts([A, B, C])
    assert (hosts.first, hosts.in_turn()) == (A, [A, B, C])
    hosts.failed(A)
    assert (hosts.first, hosts.in_turn()) == (B, [B, C, A])
    hosts.failed(B)
    hosts.failed(C)
    assert hosts.first == A


def test_one_outage_that_many_connections_notice_moves_them_by_one_host() -> None:
    hosts = Hosts([A, B, C])
    for _ in range(10):
        hosts.failed(A)
    assert hosts.first == B


def test_only_host_remains_first() -> None:
    hosts = Hosts([A])
    hosts.failed(A)
    assert hosts.in_turn() == [A]


def test_process_draws_one_order_for_all_connections() -> None:
    assert shared_hosts((A, B, C), shuffled=True) is shared_hosts((A, B, C), shuffled=True)
    many = tuple(Address("a", port) for port in range(1, 30))
    assert list(shared_hosts(many, shuffled=False).in_turn()) == list(many)
    drawn = shared_hosts(many, shuffled=True).in_turn()
    assert list(drawn) != list(many)
    assert sorted(drawn) == list(many)
