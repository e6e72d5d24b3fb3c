"""Look up the addresses of host names without blocking, so that slow name servers delay only their own names."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address

import pycares
from notify_common.runtime.networks import Address

from notify_webhook_sender.addresses import HostUnknown

LOOKUP_TIMEOUT = 5.0  # seconds, a hard limit for a lookup with all its repetitions
QUERY_TIMEOUT, QUERY_TRIES = 2.0, 2  # seconds until a query is repeated, and how often it is made
MAX_ADDRESSES = 8  # for each name, because each address may have to be tried
LOOKUPS_PER_CACHE = 1000  # c-ares caches responses for their TTL, in a cache that has no limit of its own
# A truncated response is used as it is. Over TCP, the owner of a name could send thousands of addresses, and converting
# these blocks the event loop. EDNS lets a response over UDP have 1,232 bytes, and with that about 70 addresses.
FLAGS = pycares.ARES_FLAG_IGNTC | pycares.ARES_FLAG_EDNS

_Lookup = asyncio.Future[list[Address]]


class Resolver:
    """Resolves names as the host is configured: /etc/hosts, and the name servers and search domains of resolv.conf.

    Concurrent lookups of the same name share one. A lookup occupies no thread, so there is room for any number of them.
    """

    def __init__(self, servers: Sequence[str] | None = None) -> None:
        self._channel = pycares.Channel(flags=FLAGS, timeout=QUERY_TIMEOUT, tries=QUERY_TRIES, servers=servers)
        self._lookups: dict[str, _Lookup] = {}
        self._cached = 0

    async def addresses(self, host: str) -> list[Address]:
        """Return the addresses of the host, or raise `HostUnknown`."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = asyncio.create_task(self._look_up(host))
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
        # A caller that is cancelled must not cancel the lookup for the others.
        return await asyncio.shield(lookup)

    def close(self) -> None:
        """End the pending lookups."""
        self._channel.close()

    async def _look_up(self, host: str) -> list[Address]:
        loop = asyncio.get_running_loop()
        response: _Lookup = loop.create_future()

        def respond(found: pycares.AddrInfoResult | None, error: int | None) -> None:
            if response.done():
                return
            if error is not None:
                response.set_exception(HostUnknown(pycares.errno.strerror(error)))
            else:
                nodes = found.nodes if found is not None else []
                response.set_result([ip_address(node.addr[0].decode()) for node in nodes[:MAX_ADDRESSES]])

        def call_back(found: pycares.AddrInfoResult | None, error: int | None) -> None:
            with suppress(RuntimeError):  # the process may have ended its event loop
                loop.call_soon_threadsafe(respond, found, error)

        self._cached += 1
        try:
            if self._cached > LOOKUPS_PER_CACHE:
                self._cached = 0
                self._channel.reinit()  # this empties the cache
            self._channel.getaddrinfo(host, None, type=socket.SOCK_STREAM, callback=call_back)
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                return await response
        except TimeoutError:
            raise HostUnknown("the lookup timed out") from None
        except (pycares.AresError, UnicodeError) as error:
            raise HostUnknown(str(error)) from None
