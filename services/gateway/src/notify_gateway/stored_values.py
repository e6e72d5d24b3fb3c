"""SQL expressions for values whose size or range PostgreSQL does not check.

Services store only values within these bounds. Others can come from a stolen login of the status writer, and must not
take up the gateway's memory or break its responses.
"""

from notify_common.contracts.messages import SHORT_TEXT_LENGTH


def short(column: str) -> str:
    """Return the beginning of a text, up to the length that a sender may report."""
    return f"left({column}, {SHORT_TEXT_LENGTH})"


def representable(column: str) -> str:
    """Return a time within the years of Python's `datetime`, in every time zone."""
    nearest = f"least(greatest({column}, TIMESTAMPTZ '0001-01-02 UTC'), TIMESTAMPTZ '9999-12-30 UTC')"
    return f"CASE WHEN {column} IS NOT NULL THEN {nearest} END"
