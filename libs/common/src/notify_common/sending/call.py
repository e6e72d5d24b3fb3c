"""A call that a sender wants to make, and the refusal of such a call."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from notify_common.sending.call_slots import Quota


@dataclass(frozen=True, slots=True)
class Call:
    """A call that asks for admission; times are in seconds from now."""

    recipient: str
    timeout: float
    """The longest time for which it may wait."""
    turn_in: float | None = None
    """When its reserved turn comes, negative if that has passed; None if it has no reservation."""
    expires_in: float = math.inf
    even_if_open: bool = False
    """True if the call is admitted although the circuit is open."""
    quotas: tuple[Quota, ...] = ()
    """The quotas that it shares with calls to other providers."""
    further: Sequence[float] = ()
    """The delay of each further message that it sends, in seconds after the first."""
    ready: asyncio.Event | None = None
    """While this event is not set, the call is not admitted."""

    @property
    def is_ready(self) -> bool:
        """True if the call may be admitted."""
        return self.ready is None or self.ready.is_set()

    async def until_ready(self) -> None:
        """Wait until the call may be admitted."""
        if self.ready is not None:
            await self.ready.wait()


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """The call may not be made now."""

    wait: float
    """Seconds until it should be tried again."""
    reserved: bool = False
    """True if the call has a reservation, and so needs no other one."""
    circuit_open: bool = False
    """True if the provider is unavailable, so that the wait counts towards `max_wait`."""
