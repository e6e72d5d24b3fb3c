"""Errors raised by database access."""


class DatabaseUnavailable(Exception):
    """The operation may succeed later; usually PostgreSQL is down, starting, stopping or overloaded."""


class StatementTimedOut(DatabaseUnavailable):
    """A statement, or its wait for a lock, took longer than is allowed."""


class LoginRejected(DatabaseUnavailable):
    """PostgreSQL rejected the user, the password or the database name."""


class StatementFailed(DatabaseUnavailable):
    """PostgreSQL rolled the statement back, perhaps because one row is on a bad page, or a trigger rejects it.

    It is a `DatabaseUnavailable`, so callers that cannot leave the row out retry it like an outage. Callers that can do
    so catch `ROW_ERRORS` first.
    """


class DataRejected(Exception):
    """PostgreSQL rejected the values and would reject them again."""


ROW_ERRORS = (DataRejected, StatementFailed)
"""The errors that a single row can cause. Without this row, the same statement may succeed."""
