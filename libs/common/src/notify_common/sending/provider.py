"""What a sender calls, and the errors by which a provider says what is to be done."""

from datetime import timedelta
from typing import Protocol

from notify_common.messages import DeliveryRequested


class Provider(Protocol):
    """A way to really send: the simulator, SMTP, the Telegram Bot API."""

    async def send(self, request: DeliveryRequested) -> str | None:
        """Send, and return the provider's message id if it gives one; raise a `ProviderFailure` otherwise."""


class ProviderFailure(Exception):
    """The provider did not send. `code` is its own word for why; it is stored and shown."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class TemporaryFailure(ProviderFailure):
    """Another attempt may succeed."""


class PermanentFailure(ProviderFailure):
    """No attempt will ever succeed."""


class Throttled(ProviderFailure):
    """The provider asks to wait `retry_after`: an attempt, but not a failure."""

    def __init__(self, code: str, retry_after: timedelta) -> None:
        super().__init__(code)
        self.retry_after = retry_after
