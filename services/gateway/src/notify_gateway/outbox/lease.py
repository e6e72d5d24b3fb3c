"""Leases on outbox rows: how long a relay may rely on one, and how it is renewed while RabbitMQ is slow to confirm."""

import math
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

LEASE = timedelta(seconds=30)
LEASE_SECONDS = LEASE.total_seconds()
# Publishing begins only if this much of the lease is left, which leaves time to renew the lease twice.
LEASE_RESERVE = LEASE_SECONDS / 3
RENEW_INTERVAL = LEASE_RESERVE / 2
# CLOCK_MONOTONIC stops while a machine is suspended, but leases still end.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_clock() -> float:
    """Return the time in seconds since some point in the past, including time for which the machine was suspended."""
    return time.clock_gettime(CLOCK)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease, which the rows of one statement share."""

    until: datetime
    """The time in the rows until which they are leased, according to PostgreSQL. It identifies the lease."""
    ends: float
    """When this process must assume that the lease has ended, according to `lease_clock`."""
    pending_until: datetime | None = None
    """The `until` of a renewal whose outcome is not known yet: the row has either this time or `until`."""

    @classmethod
    def beginning(cls, began: float, until: datetime) -> "Lease":
        """Return the lease that a statement has taken; `began` was read from `lease_clock` before the statement."""
        return cls(until, began + LEASE_SECONDS)

    def is_usable(self, now: float) -> bool:
        """Return whether enough of the lease is left at `now`, by `lease_clock`, to publish and delete its row."""
        return self.ends > now + LEASE_RESERVE

    def next_lease(self) -> "Lease":
        """Return the lease that a renewal puts in place of this one. Repeating a renewal takes the same lease again.

        A lost lease cannot be renewed, because no row has it, so this returns the lost lease itself.
        """
        if self.ends == -math.inf:
            return self
        if self.pending_until is not None:
            return Lease(self.pending_until, self.ends + (self.pending_until - self.until).total_seconds())
        ends = lease_clock() + LEASE_SECONDS
        return Lease(self.until + timedelta(seconds=ends - self.ends), ends)

    def with_pending(self, next_lease: "Lease") -> "Lease":
        """Return this lease while it is unknown whether `next_lease` has replaced it."""
        return replace(self, pending_until=next_lease.until)

    def lost(self) -> "Lease":
        """Return this lease as ended, because its row was found without it."""
        return Lease(self.until, -math.inf)
