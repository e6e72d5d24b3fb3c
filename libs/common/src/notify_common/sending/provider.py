"""The interface that every provider implements."""

from typing import Protocol

from notify_common.contracts.messages import DeliveryRequested


class Provider(Protocol):
    """A way to send messages: the simulator, SMTP, the Telegram Bot API or HTTP."""

    async def send(self, request: DeliveryRequested) -> str | None:
        """Send the message and return the provider's id for it, if any; raise `ProviderFailure` if it was not sent."""

    async def aclose(self) -> None:
        """Close connections that are kept between calls."""
