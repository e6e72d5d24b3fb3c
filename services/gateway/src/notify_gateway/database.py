"""Divide the gateway's PostgreSQL connections, so that slow reads delay little else, and tenants share them fairly."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from notify_database.engine import (
    ROWS_BY_KEY,
    PostgresSettings,
    autocommitting,
    create_engine,
    database_errors,
    execute,
)
from notify_database.errors import StatementTimedOut
from sqlalchemy import CursorResult, Executable, text
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_gateway.errors import ReadTimedOut, TooManyInProgress

MAINTENANCE_CONNECTIONS = 1  # it runs one statement at a time
# The relay, intake, and what every request needs run short statements. Each has a spare connection unless the total is
# small, so that a statement that waits for a lock does not delay the next one, such as the renewal of a lease.
SPARE_FROM = 10  # connections in total
READ_TIMEOUT = 5.0  # seconds
READ_WAIT = 5.0  # seconds a read or write waits for others of its tenant
READS = {
    # A tenant's connections are limited, but with parallel workers each could take several processes of PostgreSQL.
    "max_parallel_workers_per_gather": "0",
    # Each connection keeps a hundred prepared statements, and PostgreSQL would keep a generic plan with each of them. A
    # generic plan takes a megabyte, and 100 kB more for each week of data. By combining filters in many ways, a tenant
    # could make the connections take gigabytes. A custom plan is not kept, and has only the weeks in its parameters.
    "plan_cache_mode": "force_custom_plan",
}
# Planning a statement that reads a hundred weeks takes 8 ms. Only a few statements read all weeks, so their generic
# plans are kept.
KEEP_PLAN = text("SET LOCAL plan_cache_mode = force_generic_plan")
MAX_WAITING = 2_000  # reads and writes of one tenant that wait, each on one of the gateway's 8,000 connections


@dataclass(frozen=True)
class PoolSizes:
    """The connections of each pool. Reads get the rest."""

    relay: int
    maintenance: int
    control: int
    intake: int
    reads: int

    @classmethod
    def of(cls, total: int) -> "PoolSizes":
        """Divide `total` connections, at least 5."""
        short = 1 if total < SPARE_FROM else 2
        used = MAINTENANCE_CONNECTIONS + 3 * short
        return cls(short, MAINTENANCE_CONNECTIONS, control=short, intake=short, reads=total - used)


class Engines:
    """One connection pool for each purpose."""

    def __init__(self, settings: PostgresSettings, total: int) -> None:
        sizes = PoolSizes.of(total)
        self.relay = create_engine(settings, pool_size=sizes.relay, planner=ROWS_BY_KEY)
        self.maintenance = create_engine(settings, pool_size=sizes.maintenance)
        self.control = create_engine(settings, pool_size=sizes.control)
        """For API keys, readiness and metrics, which every request or operator depends on.

        It also serves the look-ups of the owners of live events, at most one at a time.
        """
        self.intake = create_engine(settings, pool_size=sizes.intake, planner=ROWS_BY_KEY)
        """For accepting notifications."""
        self.reads = create_engine(settings, pool_size=sizes.reads, statement_timeout=READ_TIMEOUT, planner=READS)
        """For all other requests, including their writes, which are short."""
        self.reads_per_tenant = (sizes.reads + 1) // 2

    async def dispose(self) -> None:
        """Close all connections."""
        for engine in (self.relay, self.maintenance, self.control, self.intake, self.reads):
            await engine.dispose()


class TenantSlots:
    """Semaphores, one per tenant, each of which exists only while it is in use."""

    def __init__(self, per_tenant: int) -> None:
        self._per_tenant = per_tenant
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, tenant: str) -> asyncio.Semaphore:
        """Return the tenant's semaphore."""
        slots = self._tenants.get(tenant)
        if slots is None:
            slots = self._tenants[tenant] = asyncio.Semaphore(self._per_tenant)
        return slots


class TenantShare:
    """Limits how many of the connections in `Engines.reads` each tenant uses at a time."""

    def __init__(self, per_tenant: int) -> None:
        self._slots = TenantSlots(per_tenant)
        self._waiting = Counter[str]()

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        """Hold one of the tenant's slots.

        Raise `TooManyInProgress` if none becomes free for `READ_WAIT` seconds, or at once if too many already wait.
        """
        slots = self._slots.of(tenant)
        if self._waiting[tenant] >= MAX_WAITING:
            raise TooManyInProgress
        self._waiting[tenant] += 1
        try:
            async with asyncio.timeout(READ_WAIT):
                await slots.acquire()
        except TimeoutError:
            raise TooManyInProgress from None
        finally:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant]
        try:
            yield
        finally:
            slots.release()


class TenantReads:
    """Runs reads within each tenant's share of the connections."""

    def __init__(self, engine: AsyncEngine, share: TenantShare) -> None:
        self._engine = engine
        self._autocommitting_engine = autocommitting(engine)
        self._share = share

    async def execute(self, tenant: str, statement: Executable, **parameters: object) -> CursorResult[Any]:
        """Execute one statement, with `tenant` among its parameters.

        May raise `TooManyInProgress`, `ReadTimedOut`, `DatabaseUnavailable` or `DataRejected`.
        """
        async with self.execute_holding_slot(tenant, statement, parameters) as result:
            return result

    @asynccontextmanager
    async def execute_holding_slot(
        self, tenant: str, statement: Executable, parameters: Mapping[str, object], *, keep_plan: bool = False
    ) -> AsyncIterator[CursorResult[Any]]:
        """Execute one statement, as `execute` does, and hold the tenant's slot while the result is in use.

        The slot limits how many long results of a tenant are in memory. If `keep_plan` is set, PostgreSQL keeps the
        plan of the statement in the memory of each connection.
        """
        values = {**parameters, "tenant": tenant}
        async with self._share.slot(tenant):
            try:
                if keep_plan:
                    result = await self._execute_with_kept_plan(statement, values)
                else:
                    result = await execute(self._autocommitting_engine, statement, **values)
            except StatementTimedOut:
                raise ReadTimedOut from None
            yield result

    async def _execute_with_kept_plan(
        self, statement: Executable, parameters: Mapping[str, object]
    ) -> CursorResult[Any]:
        """Execute a statement in a transaction, because the effect of `SET LOCAL` ends with it."""
        with database_errors():
            async with self._engine.begin() as connection:
                await connection.execute(KEEP_PLAN)
                return await connection.execute(statement, parameters)
