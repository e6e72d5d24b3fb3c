"""Provider errors. An error's type determines what happens to the delivery."""

from datetime import timedelta


class ProviderFailure(Exception):
    """The provider did not send the message. The short `code` and the provider's own `text` are stored and shown."""

    def __init__(self, code: str, text: str | None = None, *, of_recipient: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.text = text
        self.of_recipient = of_recipient
        """True if the failure concerns only this recipient."""


class TemporaryFailure(ProviderFailure):
    """Another attempt may succeed."""


class PermanentFailure(ProviderFailure):
    """No attempt will ever succeed."""


class UnknownOutcome(ProviderFailure):
    """The request was sent, but no complete response was read. A retry may send the message a second time."""


class Unreachable(ProviderFailure):
    """The provider cannot be reached, or rejects our credentials. The attempt does not consume the retry budget."""


class Throttled(ProviderFailure):
    """The provider asks us to slow down, for `retry_after` if that is set. This does not consume the retry budget."""

    def __init__(
        self,
        code: str,
        text: str | None = None,
        *,
        retry_after: timedelta | None = None,
        of_recipient: bool = False,
        scope_unknown: bool = False,
    ) -> None:
        super().__init__(code, text, of_recipient=of_recipient)
        self.retry_after = retry_after
        self.scope_unknown = scope_unknown
        """True if the provider does not say whether it throttles only this recipient or all calls."""
