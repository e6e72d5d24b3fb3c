"""UUIDv7 (RFC 9562): ids that sort by the time they carry, to the millisecond."""

from datetime import datetime
from uuid import UUID

from notify_database.id_ranges import EPOCH, MILLISECOND
from uuid_utils.compat import uuid7


def new_id(created_at: datetime) -> UUID:
    """A new id that carries `created_at`."""
    return uuid7(nanoseconds=(created_at - EPOCH) // MILLISECOND * 1_000_000)


def to_millisecond(time: datetime) -> datetime:
    """`time` cut to what an id can carry."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)
