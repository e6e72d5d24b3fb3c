"""Models and field types that several packages share."""

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, TypeAlias, TypeVar

from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import EPOCH
from notify_common.contracts.messages import LATEST_TIME
from notify_common.contracts.users import MAX_INTEGER_USER
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

LONGEST_USER_ID = 200
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

Value = TypeVar("Value")
Omissible: TypeAlias = Value | SkipJsonSchema[None]
"""The type of a response's field that is left out if it has no value."""


class Expansion(StrEnum):
    """What lists contain only on request: attempts, or messages and what belongs to them."""

    ATTEMPTS = "attempts"
    CONTENT = "content"


class RequestModel(BaseModel):
    """A base class for request models, which rejects unknown fields."""

    model_config = ConfigDict(extra="forbid")


def _fits_64_bits(user_id: int) -> int:
    if user_id > MAX_INTEGER_USER:
        raise PydanticCustomError("less_than_equal", "Input should be less than or equal to 2^63-1")
    return user_id


UserId = Annotated[
    int,
    Field(
        ge=1,
        description="At most 2^63-1. JavaScript numbers are exact only up to 2^53.",
        json_schema_extra={"format": "int64"},
    ),
    # `le` is not used, because the OpenAPI document would show the bound as a rounded float.
    AfterValidator(_fits_64_bits),
]


def _not_relative(user: str) -> str:
    if user in {".", ".."}:
        raise PydanticCustomError("value_error", "must not be a relative segment of a path")
    return user


UserKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_USER_ID,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\ufffd/]+$",  # none that a client may fail to send in a path
        description="Your own id of the user, such as an integer or a UUID.",
    ),
    AfterValidator(_not_relative),
]
# During an upgrade and after a rollback, the tables may contain channels that only a newer version knows.
StoredChannel = Annotated[
    Channel | str,
    Field(union_mode="left_to_right", description="A channel; one that this version does not know is any text."),
]


def _no_number(time: object) -> object:
    if isinstance(time, datetime) or (isinstance(time, str) and DATE.match(time)):
        return time
    raise PydanticCustomError("datetime_type", "Input should be a time such as 2026-11-26T12:00:00Z")


# Ids cannot carry a time before `EPOCH`. The margin leaves room for time zones and for default periods of 24 hours.
_Time = Annotated[AwareDatetime, Field(ge=EPOCH + timedelta(days=2))]
_FutureTime = Annotated[_Time, Field(le=LATEST_TIME), AfterValidator(lambda time: time.astimezone(UTC))]
_OR_NUMBER = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "format": "date-time"},
            {"type": "number", "description": "Seconds since 1970; above 20,000,000,000, milliseconds."},
        ]
    }
)

Time = Annotated[_Time, BeforeValidator(_no_number)]
FutureTime = Annotated[_FutureTime, BeforeValidator(_no_number)]
LooseTime = Annotated[_Time, _OR_NUMBER]
"""A time, or its seconds or milliseconds since 1970, which only the URLs under `/api` accept."""
LooseFutureTime = Annotated[_FutureTime, _OR_NUMBER]
