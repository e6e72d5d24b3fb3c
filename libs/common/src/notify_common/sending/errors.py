"""The errors of providers; each type decides what happens to the delivery."""

from datetime import timedelta


class ProviderFailure(Exception):
    """The provider did not send. The short `code` and the provider's own `text` are stored and shown."""

    def __init__(self, code: str, text: str | None = None, *, of_recipient: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.text = text
        self.of_recipient = of_recipient
        """True if the failure says nothing about other recipients."""


class TemporaryFailure(ProviderFailure):
    """Another attempt may succeed."""


class PermanentFailure(ProviderFailure):
    """No attempt will ever succeed."""


class UnknownOutcome(ProviderFailure):
    """The connection broke after the request was sent. The message may have been sent, and a retry may repeat it."""


class Unreachable(ProviderFailure):
    """The provider cannot be reached, or rejects our credentials. The attempt does not consume the retry budget."""


class Throttled(ProviderFailure):
    """The provider asks us to slow down, perhaps for `retry_after`. This does not consume the retry budget."""

    def __init__(
        self, code: str, text: str | None = None, *, retry_after: timedelta | None = None, of_recipient: bool = False
    ) -> None:
        super().__init__(code, text, of_recipient=of_recipient)
        self.retry_after = retry_after
