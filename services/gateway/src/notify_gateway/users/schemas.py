"""Requests and responses of the user routes."""

from datetime import datetime
from typing import Any

from fastapi.exceptions import RequestValidationError
from notify_common.contracts.channels import Channel, Recipients
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from notify_gateway.http.fields import Omissible, RequestModel, StoredChannel

EXAMPLE_SETTINGS: dict[str, Any] = {
    "an address": {"value": {"recipient": "a@example.org"}},
    "an opt-out": {"value": {"opted_out": True}},
}


class UserChannelSettings(RequestModel):
    """A user's recipient and opt-out for one channel. Fields that are left out keep their stored values."""

    recipient: str | None = Field(
        None, description="Used for notifications that name no recipient. Set null to delete it."
    )
    opted_out: bool = Field(
        False, strict=True, description="If true, deliveries to the user over this channel are cancelled."
    )


def valid_recipient(channel: Channel, recipient: str) -> str | None:
    """Return the normalized recipient; raise `RequestValidationError` if it is not valid for the channel."""
    try:
        return Recipients.model_validate({channel.value: recipient}).of(channel)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise RequestValidationError([{**problem, "loc": ("body", "recipient")} for problem in problems]) from None


class UserChannel(BaseModel):
    """A user's stored recipient and opt-out for one channel."""

    model_config = ConfigDict(from_attributes=True)

    channel: StoredChannel
    recipient: Omissible[str] = None
    opted_out: bool
    updated_at: datetime


class UserChannelPage(BaseModel):
    """All that is stored for a user."""

    items: list[UserChannel]
    has_more: bool = False
