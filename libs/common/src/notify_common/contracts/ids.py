"""UUIDv7 ids (RFC 9562), which sort by the time that they contain, so that a time range maps to a range of ids.

The time has millisecond precision. Delivery ids contain the time at which their notification was accepted.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
RANDOM_BITS = 80  # everything after the timestamp, including version and variant
LAST_TIMESTAMP = 2**48 - 1


def new_id(created_at: datetime) -> UUID:
    """Return a new id that contains `created_at`."""
    return uuid7(nanoseconds=(created_at - EPOCH) // MILLISECOND * 1_000_000)


def to_millisecond(time: datetime) -> datetime:
    """Truncate `time` to the precision of an id."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def accepted_at(notification_id: UUID) -> float:
    """Return when the notification was accepted, in seconds since the epoch."""
    return (notification_id.int >> RANDOM_BITS) / 1000


def first_id_at(time: datetime) -> UUID:
    """Return the smallest possible id that contains `time` or a later time."""
    milliseconds = -((EPOCH - time) // MILLISECOND)  # rounded up
    return UUID(int=min(max(milliseconds, 0), LAST_TIMESTAMP) << RANDOM_BITS)


def of_the_same_time(id_: UUID) -> tuple[UUID, UUID]:
    """Return inclusive bounds for all ids that contain the same time, such as a notification's and its deliveries'."""
    first = id_.int >> RANDOM_BITS << RANDOM_BITS
    return UUID(int=first), UUID(int=first | (1 << RANDOM_BITS) - 1)


def of_the_same_time_sql(id_: str) -> str:
    """Return these bounds as SQL for the right-hand side of `BETWEEN`; `id_` is the name of an id column."""
    time = f"left({id_}::text, 13)"  # twelve hexadecimal digits and a hyphen
    return f"({time} || '-0000-0000-000000000000')::uuid AND ({time} || '-ffff-ffff-ffffffffffff')::uuid"
