"""The circuit breakers of a channel, one for each provider."""

from notify_common.sending.call_slots import CallSlots
from notify_common.sending.circuit_breaker import CircuitBreaker
from notify_common.sending.provider_limits import ProviderLimits

MAX_BREAKERS = 10_000


class CircuitBreakers:
    """One circuit breaker per provider behind a channel, so that one provider's outage does not delay the others."""

    def __init__(self, name: str, limits: ProviderLimits, *, max_breakers: int = MAX_BREAKERS) -> None:
        self._name = name
        self._max_breakers = max_breakers
        self.limits = limits
        self._slots = CallSlots()
        self._breakers: dict[str, CircuitBreaker] = {}
        self._stopped = False

    def for_recipient(self, recipient: str) -> CircuitBreaker:
        """Return the circuit breaker for the recipient's provider."""
        provider = self.limits.provider_of(recipient)
        breaker = self._breakers.get(provider)
        if breaker is None:
            if len(self._breakers) >= self._max_breakers:
                self._breakers = {key: breaker for key, breaker in self._breakers.items() if not breaker.idle}
            name = f"{self._name} {provider}".rstrip()
            breaker = self._breakers[provider] = CircuitBreaker(name, self.limits, self._slots)
            breaker.stopped = self._stopped
        return breaker

    def stop(self) -> None:
        """Admit no further calls."""
        self._stopped = True
        for breaker in self._breakers.values():
            breaker.stop()
