"""The gates of a channel, one for each provider."""

from notify_common.sending.call_slots import CallSlots
from notify_common.sending.provider_gate import ProviderGate
from notify_common.sending.provider_limits import ProviderLimits

MAX_GATES = 10_000


class ChannelGates:
    """A gate for each provider behind a channel, so that one provider's outage does not delay calls to the others."""

    def __init__(self, name: str, limits: ProviderLimits, *, max_gates: int = MAX_GATES) -> None:
        self._name = name
        self._max_gates = max_gates
        self.limits = limits
        self._slots = CallSlots()
        self._gates: dict[str, ProviderGate] = {}
        self._stopped = False

    def for_recipient(self, recipient: str) -> ProviderGate:
        """Return the gate to the recipient's provider."""
        provider = self.limits.provider_of(recipient)
        gate = self._gates.get(provider)
        if gate is None:
            if len(self._gates) >= self._max_gates:
                self._gates = {key: gate for key, gate in self._gates.items() if not gate.idle}
            name = f"{self._name} {provider}".rstrip()
            gate = self._gates[provider] = ProviderGate(name, self.limits, self._slots)
            gate.stopped = self._stopped
        return gate

    def stop(self) -> None:
        """Admit no further calls."""
        self._stopped = True
        for gate in self._gates.values():
            gate.stop()
