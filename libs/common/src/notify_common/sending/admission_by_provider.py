"""The admission controls of a channel, one for each provider."""

from notify_common.sending.admission_control import AdmissionControl
from notify_common.sending.call_slots import CallSlots
from notify_common.sending.provider_limits import ProviderLimits

MAX_CONTROLS = 10_000


class AdmissionByProvider:
    """An admission control per provider behind a channel, so that one provider's outage delays no calls to others."""

    def __init__(self, name: str, limits: ProviderLimits, *, max_controls: int = MAX_CONTROLS) -> None:
        self._name = name
        self._max_controls = max_controls
        self.limits = limits
        self._slots = CallSlots()
        self._controls: dict[str, AdmissionControl] = {}
        self._stopped = False

    def for_recipient(self, recipient: str) -> AdmissionControl:
        """Return the admission control of the recipient's provider."""
        provider = self.limits.provider_of(recipient)
        control = self._controls.get(provider)
        if control is None:
            if len(self._controls) >= self._max_controls:
                self._controls = {key: control for key, control in self._controls.items() if not control.idle}
            name = f"{self._name} {provider}".rstrip()
            control = self._controls[provider] = AdmissionControl(name, self.limits, self._slots)
            control.stopped = self._stopped
        return control

    def stop(self) -> None:
        """Admit no further calls."""
        self._stopped = True
        for control in self._controls.values():
            control.stop()
