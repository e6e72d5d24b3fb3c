"""The errors that database access raises."""


class DatabaseUnavailable(Exception):
    """PostgreSQL is down, starting, stopping or overloaded; the same work may succeed later."""


class LoginRejected(DatabaseUnavailable):
    """PostgreSQL rejected the user, the password or the database name."""


class DataRejected(Exception):
    """PostgreSQL will never accept these values."""
