"""Lookups of host names, against a real name server."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pycares
import pytest
from notify_webhook_sender.addresses import HostUnknown
from notify_webhook_sender.resolver import MAX_ADDRESSES, Resolver
from support.dns_peer import DnsPeer

MANY = 100  # lookups
LOCALHOST = [ip_address("127.0.0.1")]


@pytest.fixture
async def names() -> AsyncIterator[DnsPeer]:
    peer = DnsPeer(silent="slow.example")
    yield peer
    peer.close()


@pytest.fixture
async def resolver(names: DnsPeer) -> AsyncIterator[Resolver]:
    resolver = Resolver([await names.open()])
    yield resolver
    resolver.close()


async def test_lookups_that_get_no_response_delay_no_other(resolver: Resolver) -> None:
    slow = [asyncio.create_task(resolver.addresses(f"h{number}.slow.example")) for number in range(MANY)]
    await asyncio.sleep(0)  # the lookups begin
    assert await resolver.addresses("hooks.example") == LOCALHOST
    assert not any(lookup.done() for lookup in slow)
    outcomes = await asyncio.gather(*slow, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {HostUnknown}


async def test_concurrent_lookups_of_a_name_share_one(names: DnsPeer, resolver: Resolver) -> None:
    found = await asyncio.gather(*(resolver.addresses("hooks.example") for _ in range(MANY)))
    assert found == [LOCALHOST] * MANY
    assert names.queries["hooks.example"] == 1


async def test_cancelled_caller_does_not_cancel_the_lookup_of_others(names: DnsPeer, resolver: Resolver) -> None:
    first, second = [asyncio.create_task(resolver.addresses("hooks.example")) for _ in range(2)]
    await asyncio.sleep(0)  # both wait for the lookup
    first.cancel()
    assert await second == LOCALHOST
    assert names.queries["hooks.example"] == 1


async def test_truncated_response_is_not_completed_over_tcp(resolver: Resolver) -> None:
    # The name server does not listen on TCP, over which a response could have thousands of addresses.
    assert len(await resolver.addresses("many.example")) == MAX_ADDRESSES


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
async def test_hosts_file_and_addresses_need_no_name_server(names: DnsPeer, resolver: Resolver, name: str) -> None:
    assert all(address.is_loopback for address in await resolver.addresses(name))
    assert not names.queries


@pytest.mark.parametrize("name", ["x" * 64 + ".example", "a..example", "bücher.example\n"])
async def test_impossible_name_is_unknown(resolver: Resolver, name: str) -> None:
    with pytest.raises(HostUnknown):
        await resolver.addresses(name)


async def test_pending_lookups_end_when_the_resolver_is_closed(resolver: Resolver) -> None:
    pending = asyncio.create_task(resolver.addresses("h.slow.example"))
    await asyncio.sleep(0.05)
    resolver.close()
    with pytest.raises(HostUnknown):
        await pending


async def test_emptying_the_cache_interrupts_no_lookup(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_webhook_sender.resolver.LOOKUPS_PER_CACHE", 5)
    found = await asyncio.gather(*(resolver.addresses(f"h{number}.example") for number in range(MANY)))
    assert found == [LOCALHOST] * MANY


async def test_lookup_fails_as_any_other_if_the_cache_cannot_be_emptied(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: pycares.Channel) -> None:
        raise pycares.AresError(pycares.errno.ARES_ENOMEM, "out of memory")

    monkeypatch.setattr("notify_webhook_sender.resolver.LOOKUPS_PER_CACHE", 0)
    monkeypatch.setattr(pycares.Channel, "reinit", fail)
    with pytest.raises(HostUnknown, match="out of memory"):
        await resolver.addresses("hooks.example")
