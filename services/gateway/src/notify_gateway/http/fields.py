"""Field types that several subjects share."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from notify_common.contracts.ids import EPOCH
from pydantic import AfterValidator, AwareDatetime, Field
from pydantic_core import PydanticCustomError

MAX_USER_ID = 2**63 - 1


def _fits_64_bits(user_id: int) -> int:
    if user_id > MAX_USER_ID:
        raise PydanticCustomError("less_than_equal", "Input should be less than or equal to 2^63-1")
    return user_id


UserId = Annotated[
    int,
    Field(
        ge=1,
        description="Up to 2^63-1; past 2^53 JavaScript needs care to send and read it.",
        json_schema_extra={"format": "int64"},
    ),
    # Not `le`: the OpenAPI document would round the bound to a float.
    AfterValidator(_fits_64_bits),
]
# Ids carry the milliseconds since then: nothing is older.
Time = Annotated[AwareDatetime, Field(ge=EPOCH + timedelta(days=2))]
# Not past what every time zone can express.
FutureTime = Annotated[
    Time, Field(le=datetime(9000, 1, 1, tzinfo=UTC)), AfterValidator(lambda time: time.astimezone(UTC))
]
