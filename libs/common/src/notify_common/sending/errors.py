"""How a provider says that it did not send, and what that means for the delivery."""

from datetime import timedelta


class ProviderFailure(Exception):
    """The provider did not send. `code` is why, in a word, `text` in its own words: both are stored and shown."""

    of_recipient = False
    """Whether it says nothing of what other recipients may expect."""

    def __init__(self, code: str, text: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.text = text


class TemporaryFailure(ProviderFailure):
    """Another attempt may succeed."""


class PermanentFailure(ProviderFailure):
    """No attempt will ever succeed."""


class UnknownOutcome(ProviderFailure):
    """The connection broke after the request was sent: it may have been sent or not. Another attempt may repeat it."""


class Unreachable(ProviderFailure):
    """The provider could not be asked, or does not let us in: nothing was sent, and no delivery pays for it."""

    def __init__(self, code: str, text: str | None = None, *, of_recipient: bool = False) -> None:
        super().__init__(code, text)
        self.of_recipient = of_recipient


class Throttled(ProviderFailure):
    """The provider asks to wait, `retry_after` if it says so: an attempt, but not a failure."""

    def __init__(
        self,
        code: str,
        text: str | None = None,
        *,
        retry_after: timedelta | None = None,
        of_recipient: bool = False,
    ) -> None:
        super().__init__(code, text)
        self.retry_after = retry_after
        self.of_recipient = of_recipient
