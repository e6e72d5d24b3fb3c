"""What a sender calls, and the errors by which a provider says what is to be done."""

from typing import Protocol

from notify_common.contracts.messages import DeliveryRequested


class Provider(Protocol):
    """A way to send: the simulator, SMTP, the Telegram Bot API, HTTP."""

    async def send(self, request: DeliveryRequested) -> str | None:
        """Send, and return the provider's message id if it gives one; raise a `ProviderFailure` otherwise."""

    async def aclose(self) -> None:
        """Close what is open between two calls."""
