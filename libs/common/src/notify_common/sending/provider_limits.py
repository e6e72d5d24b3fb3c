"""The limits for calls to a provider."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.call_slots import Quota
from notify_common.sending.rate_limiter import LONGEST_TURN_WAIT

HELD_PER_CALL = 10  # messages that a sender holds per concurrent call if the provider has no rate limit


def one_provider(_: str) -> str:
    """Return the same provider for every recipient."""
    return ""


def no_quotas(_: DeliveryRequested) -> tuple[Quota, ...]:
    """Return no quotas, for channels with one provider."""
    return ()


def one_message(_: DeliveryRequested) -> Sequence[float]:
    """Return no delays of further messages, for providers that get a single message per call."""
    return ()


@dataclass(frozen=True)
class ProviderLimits:
    """The limits for calls to a provider. A rate of 0 means that there is no limit."""

    concurrency: int
    """Concurrent calls."""
    rate: float = 0
    """Messages per second."""
    rate_per_recipient: float = 0
    """Messages per second to one recipient."""
    admission_timeout: timedelta = timedelta(minutes=2)
    """The longest time for which a message may occupy a worker while it waits to be admitted."""
    retry_after: timedelta = timedelta(seconds=32)
    """The wait of a message that finds the circuit open. A power of two needs only one retry queue by default."""
    connect_timeout: timedelta | None = None
    """Within this time, a call has a connection or fails as unreachable; None if that is unknown.

    If it is known, a trial call that takes longer, or whose connection breaks, closes the circuit. Otherwise, a tenant
    whose URL never responds could keep the circuit of a host open that responds to others.
    """
    provider_of: Callable[[str], str] = one_provider
    """Returns the name of a recipient's provider, for channels with many providers."""
    quotas_of: Callable[[DeliveryRequested], tuple[Quota, ...]] = no_quotas
    """Returns further limits for concurrent calls, which several providers share."""
    further_messages_of: Callable[[DeliveryRequested], Sequence[float]] = one_message
    """Returns the delay of each further message that a call sends, in seconds after the first."""

    def prefetch(self, concurrency: int, call_timeout: float) -> int:
        """Return how many messages a sender should hold, at most `concurrency`.

        The backlog of a channel with one provider waits in its queue, in order, where every sender can take from it. A
        sender holds only what keeps its provider busy: the calls in progress, and those of the next few seconds.
        """
        if self.provider_of is not one_provider:
            return concurrency
        if not self.rate:
            return min(concurrency, self.concurrency * HELD_PER_CALL)
        in_progress = min(self.concurrency, math.ceil(self.rate * call_timeout))
        return min(concurrency, max(in_progress, math.ceil(self.rate * LONGEST_TURN_WAIT)))
