"""Errors raised by database access."""


class DatabaseUnavailable(Exception):
    """PostgreSQL is down, starting, stopping or overloaded; the same operation may succeed later."""


class StatementTimedOut(DatabaseUnavailable):
    """A statement, or its wait for a lock, took longer than is allowed."""


class LoginRejected(DatabaseUnavailable):
    """PostgreSQL rejected the user, the password or the database name."""


class DataRejected(Exception):
    """PostgreSQL rejected the values and would reject them again."""
