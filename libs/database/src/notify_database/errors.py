"""Errors of the database."""


class DatabaseUnavailable(Exception):
    """PostgreSQL is away, going away, starting or busy: the same work may succeed later."""


class LoginRejected(DatabaseUnavailable):
    """PostgreSQL is there and does not let us in: a wrong user, password or database."""


class DataRejected(Exception):
    """PostgreSQL will never take these values."""
