"""What the routes of a user's channels take and return."""

from datetime import datetime

from fastapi.exceptions import RequestValidationError
from notify_common.contracts.channels import Channel, Recipients
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class UserChannelSettings(BaseModel):
    """How a user is to be reached over a channel. What is left out stays as it is stored."""

    model_config = ConfigDict(extra="forbid")

    recipient: str | None = Field(None, description="For notifications that name none; null forgets it.")
    opted_out: bool = Field(False, strict=True, description="Nothing is sent over it; deliveries are cancelled.")


def valid_recipient(channel: Channel, recipient: str | None) -> str | None:
    """The recipient as the channel takes it; raises `RequestValidationError`."""
    try:
        return Recipients.model_validate({channel.value: recipient}).of(channel)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise RequestValidationError([{**problem, "loc": ("body", "recipient")} for problem in problems]) from None


class UserChannelView(BaseModel):
    """How a user is reached over a channel."""

    model_config = ConfigDict(from_attributes=True)

    channel: Channel
    recipient: str | None
    opted_out: bool
    updated_at: datetime
