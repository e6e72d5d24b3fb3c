"""Requests and responses of the key routes. The command line applies the same rules."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from notify_common.runtime.logging import CONTROL_CHARACTERS
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from notify_gateway.http.fields import FutureTime, Omissible, RequestModel
from notify_gateway.http.principal import Scope

TEST_SCOPES = frozenset({Scope.SEND, Scope.READ, Scope.RECIPIENTS_READ})
"""The scopes of test keys, which must not affect real deliveries or stored recipients."""


EXAMPLE_KEYS: dict[str, Any] = {
    "a service": {"value": {"name": "checkout", "scopes": ["send", "read"]}},
    "a test key": {"value": {"name": "tests of the checkout", "scopes": ["send"], "test": True}},
}


class KeyRequest(RequestModel):
    """A new API key."""

    # Control characters could, for example, hide other keys when a terminal shows the list.
    name: Annotated[str, Field(max_length=200, pattern=f"^[^{CONTROL_CHARACTERS}]*$")] = Field(
        "", description="A note on what the key is for."
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]
    expires_at: FutureTime | None = Field(None, description="The time from which the key is rejected. Null: never.")
    test: bool = Field(False, strict=True, description="If true, everything posted with the key is only simulated.")

    @model_validator(mode="after")
    def _check_test_scopes(self) -> Self:
        if self.test and (refused := sorted(set(self.scopes) - TEST_SCOPES)):
            message = f"a test key cannot have the scope {', '.join(refused)}"
            raise PydanticCustomError("value_error", "{message}", {"field": "scopes", "message": message})
        return self

    def rejection_at(self, now: datetime) -> str | None:
        """Return why the request cannot be accepted at `now`, as `field: reason`; None if it can."""
        if self.expires_at is not None and self.expires_at <= now:
            return "expires_at: must be later than now"
        return None


class Key(BaseModel):
    """An API key, without the key itself."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    scopes: list[str]
    test: bool
    created_at: datetime
    expires_at: Omissible[datetime] = None
    last_used_at: Omissible[datetime] = Field(None, description="Accurate to about a minute.")
    revoked_at: Omissible[datetime] = None


class CreatedKey(BaseModel):
    """A new API key, with the key itself."""

    id: UUID
    token: str = Field(description="The key itself, which cannot be read again.")
    name: str
    scopes: list[Scope]
    test: bool
    expires_at: Omissible[datetime] = None


class KeyPage(BaseModel):
    """A page of API keys, newest first."""

    items: list[Key]
    next_cursor: Omissible[UUID] = Field(None, description="The `cursor` of the next page, if there is one.")
    has_more: bool


class KeyQuery(RequestModel):
    """A page of API keys."""

    limit: int = Field(50, ge=1, le=200)
    cursor: UUID | None = None
