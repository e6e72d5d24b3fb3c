"""Ids of users.

Clients choose them. They are text, but the first API had only integers, so integers are stored and sent as such.
"""

from typing import NamedTuple

MAX_INTEGER_USER = 2**63 - 1
DIGITS = len(str(MAX_INTEGER_USER))


class UserColumns(NamedTuple):
    """A user's id in the tables and messages, where old versions of the services expect an integer."""

    user_id: int
    """0 if the id is not an integer."""
    user_key: str | None
    """The id, only if it is not an integer."""


def user_columns(user: str) -> UserColumns:
    """Return how the id of a user is stored. `123` is an integer; `0`, `0123` and `+123` are other users."""
    if user.isascii() and user.isdigit() and user[0] != "0" and len(user) <= DIGITS:
        integer = int(user)
        if integer <= MAX_INTEGER_USER:
            return UserColumns(integer, None)
    return UserColumns(0, user)


def user_of(user_id: int, user_key: str | None) -> str:
    """Return the id of a user that is stored in these columns."""
    return str(user_id) if user_key is None else user_key
