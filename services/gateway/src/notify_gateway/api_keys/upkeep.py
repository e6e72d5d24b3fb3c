"""Report the use of API keys, and keep up to date what the gateway knows of them."""

import asyncio
import logging
import time
from collections.abc import Callable

from notify_common.runtime.outage import Outage
from notify_database.errors import DatabaseUnavailable, DataRejected

from notify_gateway.api_keys.look_up import CACHED_KEYS, ApiKeyLookUp
from notify_gateway.api_keys.shared_rate_limits import SharedRateLimits
from notify_gateway.api_keys.store import ApiKeyStore

log = logging.getLogger(__name__)

REPORT_INTERVAL = 1.0  # seconds
UPKEEP_INTERVAL = 60.0  # seconds


class KeyUpkeep:
    """The background task that shares the rate limits, and keeps the look-up and the times of last use up to date."""

    def __init__(
        self,
        shared: SharedRateLimits,
        keys: ApiKeyStore,
        look_up: ApiKeyLookUp,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._keys = keys
        self._look_up = look_up
        self._clock = clock
        self._stored_until = 0.0
        """Uses before this time have been stored."""

    async def run(self, stopping: "asyncio.Task[bool]") -> None:
        """Work until `stopping` is done, then store the last uses; wait out outages of PostgreSQL."""
        outage = Outage(log, "the use of API keys is not reported")
        next_upkeep = time.monotonic()
        while not stopping.done():
            try:
                await self._shared.report()
                if time.monotonic() >= next_upkeep:
                    await self.upkeep()
                    next_upkeep = time.monotonic() + UPKEEP_INTERVAL
            except (DatabaseUnavailable, DataRejected) as error:
                outage.failed(error)
            else:
                outage.ended()
            await asyncio.wait({stopping}, timeout=REPORT_INTERVAL)
        try:
            await self._store_uses()
        except (DatabaseUnavailable, DataRejected) as error:
            outage.failed(error)

    async def upkeep(self) -> None:
        """Store when keys were last used, and read which keys are valid; may raise `DatabaseUnavailable`.

        A gateway that has just started therefore knows the valid keys, and does not count them as failures of an
        address from which an attacker tries others.
        """
        started_at = self._clock()
        await self._store_uses()
        self._look_up.remember(await self._keys.valid(CACHED_KEYS), started_at)
        await self._shared.delete_unused()

    async def _store_uses(self) -> None:
        now = self._clock()
        used = self._look_up.used(since=self._stored_until)
        await self._keys.touch({key_id: now - used_at for key_id, used_at in used.items()})
        self._stored_until = now
