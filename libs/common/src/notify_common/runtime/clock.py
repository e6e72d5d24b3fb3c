"""The clock."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time as a time-zone-aware datetime in UTC."""
    return datetime.now(UTC)
