"""The owner of a request's API key, and what the key permits."""

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_TENANT = "default"


class Scope(StrEnum):
    """A permission of an API key. Every scope except `operator` is limited to the key's tenant."""

    SEND = "send"
    READ = "read"
    ADMIN = "admin"
    OPERATOR = "operator"
    RECIPIENTS_READ = "recipients:read"
    RECIPIENTS_WRITE = "recipients:write"
    OPT_OUTS_CLEAR = "opt-outs:clear"
    TRACE = "trace"
    """The client's `traceparent` decides whether its notifications are traced."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of an API key."""

    key_id: str
    """The id of the API key, or `everybody` if authentication is off."""
    tenant: str
    scopes: frozenset[Scope]
    test: bool = False
    """True if everything that is posted with the key is only simulated."""

    @property
    def api_key_id(self) -> str | None:
        """The id under which the API key is stored, or None if authentication is off."""
        return None if self is ANONYMOUS else self.key_id


ANONYMOUS = Principal("everybody", DEFAULT_TENANT, frozenset(Scope))
