"""Ids are UUIDv7 (RFC 9562) and sort by the time they carry, to the millisecond: ranges of time are ranges of ids."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
RANDOM_BITS = 80  # all that follows the timestamp, version and variant included
LAST_TIMESTAMP = 2**48 - 1


def first_id_at(time: datetime) -> UUID:
    """The lower bound of all ids that carry `time` or later."""
    milliseconds = -((EPOCH - time) // MILLISECOND)  # rounded up
    return UUID(int=min(max(milliseconds, 0), LAST_TIMESTAMP) << RANDOM_BITS)


def of_the_same_time(id_: UUID) -> tuple[UUID, UUID]:
    """The bounds, both inclusive, of the ids that carry the same time: a notification's and its deliveries'."""
    first = id_.int >> RANDOM_BITS << RANDOM_BITS
    return UUID(int=first), UUID(int=first | (1 << RANDOM_BITS) - 1)


def of_the_same_time_sql(id_: str) -> str:
    """The same bounds of a column: `BETWEEN` is to stand before them."""
    time = f"left({id_}::text, 13)"  # twelve digits and a hyphen
    return f"({time} || '-0000-0000-000000000000')::uuid AND ({time} || '-ffff-ffff-ffffffffffff')::uuid"
