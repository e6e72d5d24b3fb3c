"""UUIDv7 (RFC 9562): ids that sort by the time they carry, to the millisecond."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
RANDOM_BITS = 80  # all that follows the timestamp, version and variant included


def new_id(created_at: datetime) -> UUID:
    """A new id that carries `created_at`."""
    return uuid7(nanoseconds=(created_at - EPOCH) // MILLISECOND * 1_000_000)


def to_millisecond(time: datetime) -> datetime:
    """`time` cut to what an id can carry."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def first_id_at(time: datetime) -> UUID:
    """The lower bound of all ids that carry `time` or later."""
    milliseconds = -((EPOCH - time) // MILLISECOND)  # rounded up
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << RANDOM_BITS)
